//! Images for the tests, made, read and broken without the crate under test.
