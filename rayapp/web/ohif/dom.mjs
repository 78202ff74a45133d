/** Elements of the panel and their style. */

import { BUTTONS, NO_MODEL, tooltip } from './words.mjs';

const STYLE = `
.rayapp { padding: 10px; color: #e8eef6; font: 13px/1.5 system-ui, sans-serif; }
.rayapp h3 { margin: 14px 0 4px; font-size: 12px; letter-spacing: .04em; color: #8fb4d9; text-transform: uppercase; }
.rayapp .image { font-size: 15px; font-weight: 600; overflow-wrap: anywhere; }
.rayapp select, .rayapp input { box-sizing: border-box; width: 100%; padding: 5px; background: #0b1a42; color: inherit; border: 1px solid #3a5080;
  border-radius: 4px; }
.rayapp button { margin: 5px 5px 0 0; padding: 5px 10px; background: #1f3d7a; color: inherit; border-radius: 4px;
  border: 1px solid transparent; cursor: pointer; }
.rayapp button:hover { background: #2b53a5; }
.rayapp button:disabled { opacity: .55; cursor: wait; }
.rayapp button.on { border-color: #fff; }
.rayapp .labels button { background: #0b1a42; }
.rayapp .structure { display: flex; align-items: baseline; }
.rayapp .structure .label { overflow-wrap: anywhere; text-align: left; }
.rayapp .structure .volume { margin-left: auto; padding: 0 6px; color: #8fb4d9; white-space: nowrap; }
.rayapp .structure [name=looked] { padding: 2px 7px; color: transparent; border-color: #3a5080; }
.rayapp .structure [name=looked][aria-pressed=true] { color: inherit; }
.rayapp .labels .label::before { content: ''; display: inline-block; width: 10px; height: 10px; margin-right: 6px;
  border-radius: 50%; background: var(--colour); }
.rayapp .actions { margin-top: 10px; }
.rayapp .status { margin-top: 6px; min-height: 3em; white-space: pre-line; }
.rayapp .status[data-state=wrong] { color: #ff9d8a; }
.rayapp .reason { color: #8fb4d9; }
.rayapp .archived { color: #8fb4d9; }
.rayapp .archived[data-state=waiting], .rayapp .archived[data-state=refused] { color: #ffcf7a; }
.rayapp [hidden] { display: none; }
.rayapp progress { display: block; width: 100%; margin-top: 8px; }
`;

/**
 * A new element.
 *
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Record<string, unknown>} attributes properties; `style` and `role` are set as attributes
 * @param {...(Node|string)} children
 * @returns {HTMLElementTagNameMap[Tag]}
 */
export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === 'style' || name === 'role') {
      node.setAttribute(name, String(value));
    } else {
      Object.assign(node, { [name]: value });
    }
  }
  node.append(...children);
  return node;
}

/**
 * A button with the text and tooltip of that name.
 *
 * @param {import('./words.mjs').ButtonName} name
 * @param {() => void} onclick
 */
export const button = (name, onclick) =>
  element('button', { name, title: tooltip(BUTTONS[name]), onclick }, BUTTONS[name].text);

/** Replace what is in a node. @param {HTMLElement} node @param {...(Node|string)} children */
export function fill(node, ...children) {
  if (!document.getElementById('rayapp-style')) {
    document.head.append(element('style', { id: 'rayapp-style' }, STYLE));
  }
  node.replaceChildren(...children);
}

/**
 * Set the choices of a select; without any, it is disabled and says so.
 *
 * @param {HTMLSelectElement} select
 * @param {string[]} values
 */
export function options(select, values) {
  select.disabled = !values.length;
  select.replaceChildren(...(values.length ? values.map(value => new Option(value)) : [new Option(NO_MODEL, '')]));
}
