"""What is fetched once from elsewhere: public data sets and the OHIF viewer."""
