//! The default plugin.
