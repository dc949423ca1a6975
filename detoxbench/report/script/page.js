// Theme and navigation, and what is drawn when the page opens.

const THEMES = ["system", "light", "dark"];
const remember = (value) => { try { localStorage.setItem("detoxbench-theme", value); } catch { /* private mode: not remembered */ } };
let theme = "system";
try { theme = localStorage.getItem("detoxbench-theme") || "system"; } catch { /* as above */ }
function dress() {
  if (!THEMES.includes(theme)) theme = "system";
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  byId("theme").textContent = `Theme: ${theme}`;
}
byId("theme").addEventListener("click", () => { theme = THEMES[(THEMES.indexOf(theme) + 1) % 3]; remember(theme); dress(); });
dress();

const sections = { tradeoffs: tradeoff, categories, sweeps, costs, fits };
forests();
for (const [id, make] of Object.entries(sections)) {
  const some = make();
  byId(id).hidden = !some;
  document.querySelector(`[data-needs="${id}"]`).hidden = !some;
}
redraw();

const links = new Map([...document.querySelectorAll(".bar a")].map((a) => [a.getAttribute("href").slice(1), a]));
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) for (const [id, link] of links) {
    if (id === entry.target.id) {
      link.setAttribute("aria-current", "true");
      link.closest("nav").scrollLeft = link.offsetLeft - 60;
    }
    else link.removeAttribute("aria-current");
  }
}, { rootMargin: "-20% 0px -75% 0px" });
for (const id of links.keys()) seen.observe(byId(id));
