/* Texts whose contrast with what lies behind them is under 4.5 (3 for large ones), as WCAG 2 counts it. Disabled controls are exempt. */
() => {
  const channels = (color) => color.startsWith("color(srgb")
    ? color.match(/[\d.]+/g).map(Number).map((part, n) => (n < 3 ? part * 255 : part))
    : color.match(/[\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const background = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const color = channels(getComputedStyle(e).backgroundColor);
      if (color.length < 4 || color[3] === 1) return color;
      if (color[3] > 0) return [NaN];
    }
    return [255, 255, 255];
  };
  const hasText = (element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  const found = [];
  for (const element of document.body.querySelectorAll("*")) {
    const style = getComputedStyle(element);
    if (!hasText(element) || !element.checkVisibility({ visibilityProperty: true }) || element.closest("[aria-disabled=true], svg, .mirror, option")) continue;
    const [one, two] = [luminance(channels(style.color)), luminance(background(element))];
    const ratio = (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
    const needed = parseFloat(style.fontSize) >= 24 ? 3 : 4.5;
    if (!(ratio * Number(style.opacity) >= needed)) found.push(`${ratio.toFixed(2)} ${element.outerHTML.slice(0, 120)}`);
  }
  return found;
}
