//! The SDK macro.
