/** OHIF's own undo, redo and export of our labels, which are the panel's. */

import { current } from './panels.mjs';

const OURS = 'rayapp-label-';
const HELPERS = 'rayapp-';
const STORE = 'storeSegmentation';
const MENU = 'CORNERSTONE';
export const CONTEXT = 'RAYAPP';

/**
 * @typedef {{segmentationId?: string}} Given
 * @typedef {{commandFn: (given: Given) => unknown}} Command
 * @typedef {object} CommandsManager
 * @property {(name: string, options: Given, context: string|string[]) => unknown} runCommand
 * @property {(name: string, context: string) => Command|undefined} getCommand
 * @property {(context: string, name: string, command: Command) => void} registerCommand
 */

/**
 * Have the menu of OHIF's list of segmentations store ours our way: it names its context, so that a command of ours in
 * another context is not asked.
 *
 * @param {CommandsManager} commandsManager
 */
export function claimMenu(commandsManager) {
  const theirs = commandsManager.getCommand(STORE, MENU);
  if (!theirs || claimed.has(theirs.commandFn)) {
    return;
  }
  const commandFn = (/** @type {Given} */ given) =>
    (given.segmentationId ?? '').startsWith(HELPERS)
      ? commandsManager.runCommand(STORE, given, CONTEXT)
      : theirs.commandFn(given);
  claimed.add(commandFn);
  commandsManager.registerCommand(MENU, STORE, { ...theirs, commandFn });
}

/** @type {WeakSet<Command['commandFn']>} */
const claimed = new WeakSet();

/** @param {{commandsManager: CommandsManager}} context */
export function commands({ commandsManager }) {
  const theirs = (/** @type {string} */ name, /** @type {Given} */ given) =>
    commandsManager.runCommand(name, given, ['SEGMENTATION', 'CORNERSTONE']);
  const ours = ({ segmentationId = '' }) => segmentationId.startsWith(OURS);
  const helper = ({ segmentationId = '' }) => segmentationId.startsWith(HELPERS) && !segmentationId.startsWith(OURS);
  /** Run OHIF's command on labels without strokes. @param {string} name @param {Given} given */
  const exported = (name, given) => {
    if (helper(given)) {
      return current()?.refuseExport();
    }
    return ours(given) ? current()?.withoutStrokes(async () => theirs(name, given)) : theirs(name, given);
  };
  return {
    definitions: {
      undo: () => current()?.turn('undo'),
      redo: () => current()?.turn('redo'),
      /** Save in the archive or on the server, our way for our labels. @param {Given} given */
      storeSegmentation: given => {
        if (helper(given)) {
          return current()?.refuseExport();
        }
        return ours(given) ? current()?.save() : theirs('storeSegmentation', given);
      },
      downloadSegmentation: (/** @type {Given} */ given) => exported('downloadSegmentation', given),
      downloadRTSS: (/** @type {Given} */ given) => exported('downloadRTSS', given),
    },
    defaultContext: CONTEXT,
  };
}
