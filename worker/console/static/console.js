// The pages work without this: it adds keys, layers, zoom and the clock.

const root = document.documentElement
const viewer = document.querySelector(".viewer")
const each = (selector, act) => document.querySelectorAll(selector).forEach(act)
