/** Making elements, and how they look. */

const STYLE = `
.rayapp { padding: 10px; color: #e8eef6; font: 13px/1.5 system-ui, sans-serif; }
.rayapp h3 { margin: 14px 0 4px; font-size: 12px; letter-spacing: .04em; color: #8fb4d9; text-transform: uppercase; }
.rayapp .image { font-size: 15px; font-weight: 600; overflow-wrap: anywhere; }
.rayapp select { width: 100%; padding: 5px; background: #0b1a42; color: inherit; border: 1px solid #3a5080;
  border-radius: 4px; }
.rayapp button { margin: 5px 5px 0 0; padding: 5px 10px; background: #1f3d7a; color: inherit; border-radius: 4px;
  border: 1px solid transparent; cursor: pointer; }
.rayapp button:hover { background: #2b53a5; }
.rayapp button:disabled { opacity: .55; cursor: wait; }
.rayapp button.on { border-color: #fff; }
.rayapp .labels button { background: #0b1a42; }
.rayapp .labels button::before { content: ''; display: inline-block; width: 10px; height: 10px; margin-right: 6px;
  border-radius: 50%; background: var(--colour); }
.rayapp .ends { margin-top: 10px; }
.rayapp .said { margin-top: 6px; min-height: 3em; white-space: pre-line; }
.rayapp .reason { color: #8fb4d9; }
.rayapp .archived { color: #8fb4d9; }
.rayapp .archived[data-state=waiting], .rayapp .archived[data-state=refused] { color: #ffcf7a; }
.rayapp [hidden] { display: none; }
.rayapp progress { display: block; width: 100%; margin-top: 8px; }
.rayapp .said[data-state=wrong] { color: #ff9d8a; }
`;

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === 'style' || name === 'role' || name === 'list') {
      made.setAttribute(name, value);
    } else {
      made[name] = value;
    }
  }
  made.append(...children);
  return made;
}

export function fill(node, ...children) {
  if (!document.getElementById('rayapp-style')) {
    document.head.append(element('style', { id: 'rayapp-style' }, STYLE));
  }
  node.replaceChildren(...children);
}

/** The choices of a select; with none it says so. */
export function options(select, values) {
  select.disabled = !values.length;
  select.replaceChildren(
    ...(values.length ? values.map(value => new Option(value)) : [new Option('no such model here', '')])
  );
}
