//! Which programs are shells, for those plugins that want to know.
//!
//! By name, for that is all there is to go by: who copies a shell to another name has a program of his own, against which an
//! allowlist or the plugin `drift` helps.

use callgate_sdk::Exec;

/// The shells of POSIX systems, and PowerShell.
pub const SHELLS: [&str; 16] = [
    "ash", "bash", "csh", "dash", "elvish", "fish", "ksh", "ksh93", "mksh", "nu", "pwsh", "rbash", "sh", "tcsh",
    "yash", "zsh",
];

/// Programs that are whatever they are called by, or are told by their first argument.
const MANY_IN_ONE: [&str; 2] = ["busybox", "toybox"];

/// Shells, and what else somebody counts among them.
#[derive(Debug, Clone, Default)]
pub struct Shells {
    more: Vec<String>,
}

impl Shells {
    /// Those that are known, and these names.
    pub fn and(more: Vec<String>) -> Self {
        Self { more }
    }

    /// Whether the program at this path is one.
    pub fn is(&self, path: &str) -> bool {
        let name = base(path);
        SHELLS.contains(&name) || self.more.iter().any(|more| more == name)
    }

    /// The shell that this would run, by the path of its file: the program itself, or what interprets it.
    pub fn run_by<'a>(&self, exec: &'a Exec) -> Option<&'a str> {
        let files = exec.files().map(|(_, file)| file);
        files.map(|file| file.path.as_str()).find(|path| self.is(path) || self.is_within(path, exec))
    }

    fn is_within(&self, path: &str, exec: &Exec) -> bool {
        let name = base(path);
        // `#! /bin/busybox sh`: the kernel puts the interpreter's argument before those of the script, which we don't see.
        MANY_IN_ONE.contains(&name)
            && (!exec.interpreters.is_empty() || exec.arguments.iter().take(2).any(|argument| self.is(argument)))
    }
}

fn base(path: &str) -> &str {
    // A login shell is called `-sh`.
    path.rsplit('/').next().unwrap_or_default().trim_start_matches('-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use callgate_sdk::testing::{Build, exec};
    use callgate_sdk::{Action, Event};

    fn shell(event: Build<Exec>) -> bool {
        match Event::from(event).action {
            Action::Exec(exec) => Shells::and(vec!["xonsh".to_owned()]).run_by(&exec).is_some(),
            _ => false,
        }
    }

    #[test]
    fn a_shell_is_one_by_its_file_its_interpreter_or_its_applet() {
        assert!(shell(exec("/usr/bin/bash")));
        assert!(shell(exec("/usr/bin/xonsh")));
        assert!(shell(exec("/srv/run").interpreter("/usr/bin/dash")));
        assert!(shell(exec("/bin/busybox").arguments(["-sh"])));
        assert!(shell(exec("/bin/busybox").arguments(["busybox", "ash"])));
        assert!(shell(exec("/srv/run").interpreter("/bin/busybox")));
        assert!(!shell(exec("/bin/busybox").arguments(["busybox", "ls", "sh"])));
        assert!(!shell(exec("/usr/bin/ls").arguments(["bash"])), "the name that it is called by is no matter");
        assert!(!shell(exec("/usr/bin/shred")));
    }
}
