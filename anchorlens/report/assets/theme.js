// Before anything is drawn: the theme that was chosen.
try {
  const chosen = localStorage.getItem("anchorlens-theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch { /* nothing is kept */ }
