"""Making bundles: from scratch by a recipe, or as a challenger of the champion."""
