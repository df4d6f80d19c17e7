//! memopt
