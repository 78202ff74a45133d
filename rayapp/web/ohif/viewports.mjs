/** The viewer's viewports: the series in the active one, and when that changes. */

/** @param {Services} services @returns {DisplaySet|undefined} */
export function shown({ viewportGridService, displaySetService }) {
  const { activeViewportId, viewports } = viewportGridService.getState();
  return (viewports.get(activeViewportId)?.displaySetInstanceUIDs ?? [])
    .map(uid => displaySetService.getDisplaySetByUID(uid))
    .find(one => one && one.imageIds?.length > 0 && one.Modality !== 'SEG');
}

/**
 * Call back whenever another viewport is active, or they are others.
 *
 * @param {Services} services
 * @param {() => void} changed
 * @returns {() => void} stops watching
 */
export function watch({ viewportGridService }, changed) {
  const { ACTIVE_VIEWPORT_ID_CHANGED, GRID_STATE_CHANGED, VIEWPORTS_READY } = viewportGridService.EVENTS;
  const names = [ACTIVE_VIEWPORT_ID_CHANGED, GRID_STATE_CHANGED, VIEWPORTS_READY];
  const watched = names.map(name => viewportGridService.subscribe(name, changed));
  return () => watched.forEach(({ unsubscribe }) => unsubscribe());
}
