/**
 * The parts of OHIF 3.13 and Cornerstone3D 5.6 that the panel uses, as far as it uses them: their own declarations
 * would install several hundred packages. Only `make lint-web` reads this file.
 */

type Point3 = [number, number, number];
type Colour = [number, number, number];

/** A label map: bytes on the image's grid, i fastest. */
type Labels = Uint8Array<ArrayBuffer>;

/** Cornerstone's `imagePlaneModule`: the position of a slice in LPS millimetres. */
interface ImagePlane {
  imagePositionPatient: number[];
  rowCosines: number[];
  columnCosines: number[];
  columnPixelSpacing: number;
  rowPixelSpacing: number;
  columns: number;
  rows: number;
  frameOfReferenceUID: string;
}

interface Annotation {
  annotationUID: string;
  highlighted?: boolean;
  invalidated?: boolean;
  metadata: {
    toolName: string;
    FrameOfReferenceUID?: string;
    referencedImageId?: string;
    viewPlaneNormal?: number[];
    viewUp?: number[];
  };
  data: {
    label?: string;
    handles: { points: Point3[] };
    contour?: { polyline: Point3[] };
    cachedStats?: object;
  };
}

interface ToolConstructor {
  new (...args: any[]): object;
  toolName: string;
}

interface ToolGroup {
  id: string;
  hasTool(name: string): boolean;
  addTool(name: string): void;
  addToolInstance(name: string, parent: string, configuration: object): void;
  getActivePrimaryMouseButtonTool(): string | undefined;
  setToolActive(name: string, options: { bindings: { mouseButton: number }[] }): void;
  setToolPassive(name: string): void;
}

interface CachedImage {
  voxelManager: { getScalarData(): Labels };
}

interface Cornerstone {
  cache: { getImage(imageId: string): CachedImage | undefined };
  eventTarget: EventTarget;
  getRenderingEngines(): { getViewports(): { render(): void }[] }[];
  metaData: { get(module: 'imagePlaneModule', imageId: string): ImagePlane };
}

interface CornerstoneTools {
  Enums: {
    Events: { ANNOTATION_COMPLETED: string; SEGMENTATION_DATA_MODIFIED: string; TOOL_ACTIVATED: string };
    MouseBindings: { Primary: number };
    SegmentationRepresentations: { Labelmap: string };
  };
  PlanarFreehandROITool: ToolConstructor;
  ProbeTool: ToolConstructor;
  WindowLevelTool: ToolConstructor;
  addTool(tool: ToolConstructor): void;
  annotation: {
    config: { style: { setAnnotationStyles(uid: string, style: object): void } };
    locking: { setAnnotationLocked(uid: string, locked: boolean): void };
    state: {
      addAnnotation(annotation: Annotation, frameOfReference: string): void;
      removeAnnotation(uid: string): void;
    };
  };
  segmentation: { triggerSegmentationEvents: { triggerSegmentationDataModified(segmentationId: string): void } };
  utilities: { segmentation: { setBrushSizeForToolGroup(groupId: string, radius: number, tool: string): void } };
}

interface DisplaySet {
  displaySetInstanceUID: string;
  SeriesInstanceUID: string;
  Modality: string;
  imageIds: string[];
}

interface Segmentation {
  segments: Record<number, object>;
  representationData: { Labelmap: { imageIds: string[] } };
}

interface SegmentationService {
  getSegmentation(id: string): Segmentation | undefined;
  getSegmentationRepresentations(viewportId: string): { segmentationId: string }[];
  addSegmentationRepresentation(viewportId: string, options: { segmentationId: string; type: string }): Promise<void>;
  createLabelmapForDisplaySet(
    displaySet: DisplaySet,
    options: { segmentationId: string; label: string; segments: object }
  ): Promise<string>;
  setActiveSegment(id: string, segment: number): void;
  setActiveSegmentation(viewportId: string, id: string): void;
  addSegment(id: string, segment: { segmentIndex: number; label: string; color: number[] }): void;
  setSegmentColor(viewportId: string, id: string, segment: number, rgba: number[]): void;
  remove(id: string): void;
}

interface ViewportGridService {
  EVENTS: { ACTIVE_VIEWPORT_ID_CHANGED: string; GRID_STATE_CHANGED: string; VIEWPORTS_READY: string };
  getState(): { activeViewportId: string; viewports: Map<string, { displaySetInstanceUIDs?: string[] }> };
  subscribe(event: string, callback: () => void): { unsubscribe: () => void };
}

interface ToolGroupService {
  getToolGroup(id: string): ToolGroup | undefined;
}

interface Services {
  displaySetService: { getDisplaySetByUID(uid: string): DisplaySet | undefined };
  segmentationService: SegmentationService;
  toolGroupService: ToolGroupService;
  uiNotificationService: { show(notification: object): void };
  userAuthenticationService: { setServiceImplementation(implementation: object): void };
  viewportGridService: ViewportGridService;
}

interface ServicesManager {
  services: Services;
}

interface HttpError {
  status?: number;
  message?: string;
  response?: unknown;
}

interface AppConfig {
  httpErrorHandler?: (error: HttpError | string) => void;
}

interface Route {
  path: string;
  layoutInstance: { props: object };
}

interface Mode {
  id: string;
  routes: Route[];
  onModeEnter: (context: object) => void;
  onModeExit: (context: object) => void;
}

interface Window {
  /** `app-config.js`, written by deployments/routes/ohif.py. */
  config: {
    routerBasename: string;
    dataSources: { configuration: { qidoRoot: string } }[];
    rayapp: {
      server: string;
      keys: boolean;
      archive: boolean;
      routes: Record<string, string>;
      paramsHeader: string;
      streamEvents: Record<string, string>;
    };
  };
  cornerstone: Cornerstone;
  cornerstoneTools: CornerstoneTools;
}
