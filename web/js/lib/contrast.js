// Colours that stand out from a panel, in a dark and in a light theme. No side effects.

const ENOUGH = 3; // contrast of lines with what they are drawn on, as WCAG asks for

/**
 * The colour itself where it stands out from the background of an element, else mixed with the
 * colour of its text as much as needed: yellow on white becomes olive.
 * @param colour - "#rrggbb"
 * @param style - computed style of the element; its colours are "rgb(...)"
 */
export function standingOut(colour, style) {
  const own = read(colour);
  const [text, face] = [read(style.color), read(style.backgroundColor)];
  if (!text || !face) return colour;
  let mixed = own;
  for (let share = 0; share <= 1 && contrast(mixed, face) < ENOUGH; share += 0.05) {
    mixed = own.map((part, i) => part + share * (text[i] - part));
  }
  return `rgb(${mixed.map(Math.round).join(", ")})`;
}

/** Whether a background ("#rrggbb" or "rgb(...)") is dark; so is one that cannot be read. */
export function isDark(colour) {
  const parts = read(colour.trim());
  return !parts || luminance(parts) < 0.2;
}

function read(colour) {
  const hex = colour.match(/^#(\w\w)(\w\w)(\w\w)/)?.slice(1).map((part) => parseInt(part, 16));
  const parts = colour.match(/^rgba?\(([\d.]+), ([\d.]+), ([\d.]+)/);
  return hex ?? (parts && parts.slice(1).map(Number));
}

function contrast(a, b) {
  const [dark, light] = [luminance(a), luminance(b)].sort((x, y) => x - y);
  return (light + 0.05) / (dark + 0.05);
}

function luminance(colour) {
  const [r, g, b] = colour.map((part) => ((part / 255 + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
