"""Downloads: public data sets and the OHIF viewer."""
