/** OHIF's own undo, redo and export of our labels, which are the panel's. */

import { current } from './panels.mjs';

const OURS = 'rayapp-label-';
const HELPERS = 'rayapp-';
export const CONTEXT = 'RAYAPP';

/**
 * @typedef {{segmentationId?: string}} Given
 * @typedef {{runCommand: (name: string, options: Given, context: string|string[]) => unknown}} CommandsManager
 */

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
