// The pages work without this; it adds keys, layers over the picture, zoom, and the clock.

const root = document.documentElement
const find = (selector) => document.querySelector(selector)

// The picture ---------------------------------------------------------------------------------------

const ZOOMS = [0, 100, 200, 400, 800] // percent of the original's pixels; 0 fits the window
const viewer = find(".viewer")
const stage = viewer?.querySelector(".stage")
const photo = viewer?.querySelector(".photo")
let zoom = 0

function button(what) {
    return viewer?.querySelector(`[data-do="${what}"]`)
}

function press(what, on) {
    button(what)?.setAttribute("aria-pressed", String(on))
}

function reveal(on) {
    viewer.classList.toggle("revealed", on)
    press("reveal", on)
}

function zoomTo(step) {
    const before = stage.scrollWidth && (stage.scrollLeft + stage.clientWidth / 2) / stage.scrollWidth
    const above = stage.scrollHeight && (stage.scrollTop + stage.clientHeight / 2) / stage.scrollHeight
    zoom = Math.min(Math.max(step, 0), ZOOMS.length - 1)
    viewer.classList.toggle("zoomed", zoom > 0)
    photo.style.width = zoom ? `${(Number(viewer.dataset.width) * ZOOMS[zoom]) / 100}px` : ""
    viewer.querySelector("[data-zoom]").value = zoom ? `${ZOOMS[zoom]} %` : "fit"
    stage.scrollLeft = before * stage.scrollWidth - stage.clientWidth / 2
    stage.scrollTop = above * stage.scrollHeight - stage.clientHeight / 2
}

function setOpacity(value) {
    const slider = button("opacity")
    if (!slider) return
    slider.value = value
    for (const layer of viewer.querySelectorAll(".layer")) layer.style.opacity = slider.value / 100
    sessionStorage.setItem("opacity", slider.value)
}

function toggleLayer(name) {
    const layer = viewer.querySelector(`[data-layer="${name}"]`)
    const on = layer.hasAttribute("hidden")
    layer.toggleAttribute("hidden", !on)
    press(name, on)
}

const DO = {
    map: () => toggleLayer("map"),
    tiles: () => toggleLayer("tiles"),
    in: () => zoomTo(zoom + 1),
    out: () => zoomTo(zoom - 1),
    fit: () => zoomTo(0),
}

if (viewer) {
    for (const [what, act] of Object.entries(DO)) button(what)?.addEventListener("click", act)
    button("opacity")?.addEventListener("input", (event) => setOpacity(event.target.value))
    setOpacity(sessionStorage.getItem("opacity") ?? 60)
    const holding = root.dataset.reveal === "hold"
    const shade = button("reveal")
    if (holding) {
        shade?.addEventListener("pointerdown", () => reveal(true))
        for (const end of ["pointerup", "pointerleave", "blur"]) {
            shade?.addEventListener(end, () => reveal(false))
        }
        shade?.addEventListener("keydown", (event) => event.key === " " && reveal(true))
        shade?.addEventListener("keyup", (event) => event.key === " " && reveal(false))
        window.addEventListener("blur", () => reveal(false))
    } else {
        shade?.addEventListener("click", () => reveal(!viewer.classList.contains("revealed")))
    }
}

// The clock -----------------------------------------------------------------------------------------

const WARN_S = 120
const until = find("[data-until]")

function tick() {
    const left = Math.max(0, Math.round(until.dataset.until - Date.now() / 1000))
    const text = left ? `${Math.floor(left / 60)}:${String(left % 60).padStart(2, "0")} left` : "over"
    until.textContent = text
    if (left <= WARN_S && !until.classList.contains("late")) {
        until.classList.add("late")
        find("[data-warning]").textContent = "Your claim of this image ends in two minutes."
    }
    if (left) setTimeout(tick, 1000)
}

if (until) {
    until.previousSibling.textContent = "Yours: "
    tick()
}

// Keys ----------------------------------------------------------------------------------------------

const TYPING = "input:not([type=range], [type=radio], [type=checkbox]), textarea, select"
let chosen = null // the row of reasons that a digit picks from

function choose(group) {
    chosen?.classList.remove("chosen")
    chosen = group
    chosen?.classList.add("chosen")
    chosen?.querySelector("button").focus()
}

function repeatLastReason() {
    const value = sessionStorage.getItem("reason")
    if (value) find(`.decide button[value="${CSS.escape(value)}"]`)?.click()
}

function onKey(key) {
    const group = find(`[data-decision="${CSS.escape(key)}"]`)
    if (group) return choose(group)
    if (chosen && /^[1-9]$/.test(key)) return chosen.querySelectorAll("button")[key - 1]?.click()
    if (key === "[" || key === "]") {
        return setOpacity(Number(button("opacity")?.value) + (key === "]" ? 10 : -10))
    }
    if (key === "?") return help.showModal()
    const target = find(`[data-key="${CSS.escape(key === "=" ? "+" : key)}"]`)
    if (target?.matches("input")) return target.focus()
    target?.click()
}

document.addEventListener("keydown", (event) => {
    if (root.dataset.keys === "off" || event.ctrlKey || event.metaKey || event.altKey) return
    if (event.target.matches(TYPING)) {
        if (event.key === "Escape") event.target.blur()
        return
    }
    if (document.querySelector("dialog[open]")) return
    if (event.key === "Enter" && event.target === document.body) return repeatLastReason()
    const key = event.key.toLowerCase()
    if (key === "b" && viewer) {
        if (event.repeat) return
        return reveal(root.dataset.reveal === "hold" || !viewer.classList.contains("revealed"))
    }
    if (key.length !== 1 || key === " ") return
    if (event.repeat && !"[]".includes(key)) return
    event.preventDefault()
    onKey(key)
})

document.addEventListener("keyup", (event) => {
    if (event.key.toLowerCase() === "b" && viewer && root.dataset.reveal === "hold") reveal(false)
})

// A form is sent once, however often a button is pressed; the reason is kept for Enter.
for (const form of document.querySelectorAll("form[method=post]")) {
    form.addEventListener("submit", (event) => {
        if (form.dataset.sent) return event.preventDefault()
        form.dataset.sent = "yes"
        const value = event.submitter?.value
        if (form.matches(".decide") && value) sessionStorage.setItem("reason", value)
    })
}
window.addEventListener("pageshow", () => {
    for (const form of document.querySelectorAll("form[data-sent]")) delete form.dataset.sent
})

// What the keys are, from the page itself.
const help = document.createElement("dialog")
help.setAttribute("aria-label", "Keys")
document.body.append(help)
const lines = [...document.querySelectorAll("main kbd")].map((kbd) => {
    const line = document.createElement("li")
    line.append(kbd.cloneNode(true), kbd.parentElement.textContent.replace(kbd.textContent, "").trim())
    return line
})
const list = document.createElement("ul")
list.append(...lines)
const close = document.createElement("button")
close.textContent = "Close"
close.addEventListener("click", () => help.close())
help.append(list, close)
