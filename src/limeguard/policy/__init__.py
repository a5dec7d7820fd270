"""Documents of operators to frozen policies. Bad documents are refused here, with every problem listed."""
