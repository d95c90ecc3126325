//! What `callgatectl` does, for the laptops of people who write policies and plugins, and for their CI. Behind the feature
//! `ctl`, because nothing of it may go into images: `bin/callgatectl` only parses arguments, and each subcommand is a
//! module here.
//!
//! May depend on everything that knows nothing of the kernel: `event`, `policy`, `decide`, `plugin`, and `audit`'s words.

pub mod plugin;

/// How a subcommand ended that could do its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checked {
    /// All is as it should be.
    Passed,
    /// It looked, and found something wrong, which it has said.
    Failed,
}

impl Checked {
    /// Whether all that was looked at is as it should be.
    pub fn all(each: impl IntoIterator<Item = Checked>) -> Self {
        each.into_iter().find(|one| *one == Self::Failed).unwrap_or(Self::Passed)
    }
}
