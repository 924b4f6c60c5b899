"""Options and arguments of several commands."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

import typer

Image = Annotated[UUID, typer.Argument(help="The image.")]
Limit = Annotated[int, typer.Option(help="Maximum number of rows.", min=1)]
Note = Annotated[str | None, typer.Option(help="Free text for the record.")]
Source = Annotated[str | None, typer.Option(help="Only this source.")]
Why = Annotated[str, typer.Option(help="Why, for the record.")]
