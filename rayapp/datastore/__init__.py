"""Images, labels, revisions, the click log and job records, in a folder or a DICOMweb archive."""
