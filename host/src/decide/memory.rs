//! Decisions that hold for every event with the same action: all plugins that were asked have said that theirs do.

use std::collections::HashMap;
use std::sync::Arc;

use super::Decision;
use crate::event::Action;

/// What is remembered, by the action.
#[derive(Debug, Default)]
pub(super) struct Memory(HashMap<Action, Arc<Decision>>);

impl Memory {
    /// How many decisions. Then all are forgotten: whoever asks for ever more different things pays for it, and nobody else
    /// for long.
    const MOST: usize = 512;

    /// The decision on this action, if it is known.
    pub(super) fn recall(&self, action: &Action) -> Option<Arc<Decision>> {
        if is_long(action) { None } else { self.0.get(action).cloned() }
    }

    /// Remembers the decision on this action.
    pub(super) fn keep(&mut self, action: &Action, decision: Decision) {
        if is_long(action) {
            return;
        }
        if self.0.len() == Self::MOST {
            self.0.clear();
        }
        self.0.insert(action.clone(), Arc::new(decision));
    }
}

/// About how many bytes the text of an action may have. Programs with longer arguments are seldom run twice.
const LONGEST: usize = 2048;

fn is_long(action: &Action) -> bool {
    action.length() > LONGEST
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::event::{Exec, Socket};

    fn decision() -> Decision {
        Decision {
            denial: None,
            plugin: String::new(),
            allowed_by: None,
            failures: Vec::new(),
            candidates: Vec::new(),
            took: Duration::ZERO,
        }
    }

    #[test]
    fn it_has_an_end() {
        let mut memory = Memory::default();
        let socket = |n: usize| Action::Socket(Socket { family: 2, kind: 1, protocol: n as u32 });
        for n in 0..3 * Memory::MOST {
            memory.keep(&socket(n), decision());
            assert!(memory.recall(&socket(n)).is_some() && memory.0.len() <= Memory::MOST);
        }
        assert!(memory.recall(&socket(0)).is_none());
    }

    #[test]
    fn what_is_long_is_not_remembered() {
        let mut memory = Memory::default();
        for (length, remembered) in [(10, true), (LONGEST, false)] {
            let action = Action::Exec(Exec { arguments: vec!["a".repeat(length)], ..Exec::default() });
            memory.keep(&action, decision());
            assert_eq!(memory.recall(&action).is_some(), remembered);
        }
    }
}
