// What an accessibility checker would say of the panels that can be seen: controls without a name,
// texts and colours of a legend that stand out too little. Gives lines of text; none is best.
(selector) => {
  const CONTROLS = "button, select, input, textarea, a[href], canvas, img, [tabindex], [role=button], [role=slider]";
  const LARGE = 24, LARGE_IF_BOLD = 18.66; // CSS pixels
  const pen = Object.assign(document.createElement("canvas"), { width: 1, height: 1 })
    .getContext("2d", { willReadFrequently: true });

  /** [red, green, blue, opacity], each 0 to 1, of a colour in any notation. */
  const read = (colour) => {
    pen.clearRect(0, 0, 1, 1);
    pen.fillStyle = colour;
    pen.fillRect(0, 0, 1, 1);
    return [...pen.getImageData(0, 0, 1, 1).data].map((part) => part / 255);
  };
  const over = ([r, g, b, a], below) => [r, g, b].map((part, i) => part * a + below[i] * (1 - a));
  const luminance = (colour) => {
    const [r, g, b] = colour.map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (a, b) => {
    const [dark, light] = [luminance(a), luminance(b)].sort((x, y) => x - y);
    return (light + 0.05) / (dark + 0.05);
  };
  const isShown = (element) => {
    const { width, height } = element.getBoundingClientRect();
    return width > 0 && height > 0 && element.checkVisibility({ visibilityProperty: true });
  };

  /** Filled shapes of a drawing that lie below a text, the lowest first. */
  const shapesBelow = (text) => {
    const { x, y, width, height } = text.getBoundingClientRect();
    const [mx, my] = [x + width / 2, y + height / 2];
    return [...text.ownerSVGElement.querySelectorAll("rect")].filter((shape) => {
      const box = shape.getBoundingClientRect();
      const isBefore = shape.compareDocumentPosition(text) & Node.DOCUMENT_POSITION_FOLLOWING;
      return isBefore && box.left <= mx && mx <= box.right && box.top <= my && my <= box.bottom;
    });
  };
  const background = (element) => {
    const layers = [];
    for (let one = element; one; one = one.parentElement) layers.unshift(getComputedStyle(one).backgroundColor);
    if (element.ownerSVGElement) {
      for (const shape of shapesBelow(element)) {
        const { fill, fillOpacity, opacity } = getComputedStyle(shape);
        if (fill === "none") continue;
        const [r, g, b, a] = read(fill);
        layers.push(`rgb(${[r, g, b].map((v) => v * 255)} / ${a * fillOpacity * opacity})`.replaceAll(",", " "));
      }
    }
    return layers.map(read).reduce((below, layer) => over(layer, below), [1, 1, 1]);
  };
  const opacity = (element) => {
    let share = 1;
    for (let one = element; one; one = one.parentElement) share *= getComputedStyle(one).opacity;
    return share;
  };
  const where = (element) => {
    const panel = element.closest(selector);
    const name = (one) => [one.localName, ...one.classList].join(".");
    return `${name(panel)} ${name(element)} ${JSON.stringify(element.textContent.slice(0, 40))}`;
  };

  const nameOf = (element) => {
    const label = element.labels?.[0]?.textContent ?? "";
    const words = ["select", "textarea"].includes(element.localName) ? "" : element.textContent;
    const inside = [...element.querySelectorAll("img")].map((image) => image.alt).join("");
    const given = [element.getAttribute("aria-label"), label, words, inside, element.title, element.alt];
    return given.find((text) => text?.trim());
  };
  const isDecoration = (element) =>
    (element.localName === "img" && element.getAttribute("alt") === "") || element.getAttribute("tabindex") === "-1";

  const faults = [];
  for (const panel of document.querySelectorAll(selector)) {
    for (const swatch of panel.querySelectorAll(".swatch")) {
      const ratio = contrast(background(swatch), background(swatch.parentElement));
      if (ratio < 3) faults.push(`contrast ${ratio.toFixed(2)}: ${where(swatch)}`);
    }
    for (const option of panel.querySelectorAll("[role=option]")) {
      if (!option.closest("[role=listbox]")) faults.push(`option outside a list: ${where(option)}`);
    }
    for (const element of panel.querySelectorAll(CONTROLS)) {
      const isControl = element.matches("button, select, input, textarea") || !isDecoration(element);
      if (isControl && isShown(element) && !nameOf(element)) faults.push(`no name: ${where(element)}`);
    }
    const texts = document.createTreeWalker(panel, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
      const element = texts.currentNode.parentElement;
      if (!texts.currentNode.textContent.trim() || !isShown(element)) continue;
      if (element.closest(":disabled, option, style")) continue;
      const style = getComputedStyle(element);
      const below = background(element);
      const [r, g, b, a] = read(element.ownerSVGElement ? style.fill : style.color);
      const ratio = contrast(over([r, g, b, a * opacity(element)], below), below);
      const size = parseFloat(style.fontSize);
      const isLarge = size >= (style.fontWeight >= 700 ? LARGE_IF_BOLD : LARGE);
      if (ratio < (isLarge ? 3 : 4.5)) faults.push(`contrast ${ratio.toFixed(2)}: ${where(element)}`);
    }
  }
  return [...new Set(faults)];
}
