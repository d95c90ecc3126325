//! Facts about the event at hand that plugins may ask for, from the live process.
//!
//! May depend on `sys`, `event`, and the trait of `decide` that it implements.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use nix::fcntl::readlinkat;
use nix::sys::stat::{SFlag, fstat, major, minor};

use super::caller::Caller;
use super::callers::Callers;
use super::exec::{Program, digest, environment};
use super::network::{Held, known};
use super::path::View;
use super::sockets;
use crate::decide::{Facts, FileRole, Stream};
use crate::event::{Action, Address, Subject};
use crate::sys::socket;

/// What is the same for all events.
#[derive(Debug, Default)]
pub struct Background {
    /// When the workload was started, in milliseconds since the Unix epoch.
    pub started_ms: u64,
    /// The names of addresses.
    pub names: Names,
}

/// The names that `/etc/hosts` has for addresses.
#[derive(Debug, Default)]
pub struct Names(HashMap<IpAddr, Vec<String>>);

impl Names {
    /// Reads a file as hosts(5) describes it. What is no such line says nothing; a file that is not there likewise.
    pub fn read(path: &str) -> Self {
        Self::parse(&std::fs::read_to_string(path).unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let mut names: HashMap<_, Vec<String>> = HashMap::new();
        for line in text.lines() {
            let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
            if let Some(Ok(address)) = words.next().map(str::parse::<IpAddr>) {
                names.entry(address.to_canonical()).or_default().extend(words.map(str::to_owned));
            }
        }
        Self(names)
    }

    fn of(&self, action: &Action) -> Vec<String> {
        let address = match action {
            Action::Connect(to) | Action::Bind(to) | Action::Listen(to) | Action::Send(to) => &to.address,
            Action::Accept(accepted) => &accepted.peer,
            _ => return Vec::new(),
        };
        match address {
            Address::Ipv4 { ip, .. } => self.0.get(&IpAddr::from(*ip)),
            Address::Ipv6 { ip, .. } => self.0.get(&IpAddr::from(*ip)),
            _ => None,
        }
        .cloned()
        .unwrap_or_default()
    }
}

/// Facts about one event.
pub struct LiveFacts {
    view: Arc<View>,
    callers: Arc<Callers>,
    caller: Arc<Caller>,
    parent: u32,
    program: Option<Arc<Program>>,
    names: Vec<String>,
    started_ms: u64,
    digests: Mutex<Vec<(FileRole, String)>>,
}

impl LiveFacts {
    /// Facts about what `caller`, a child of `parent`, asks for; `program` for an exec.
    pub fn new(
        view: &Arc<View>,
        callers: &Arc<Callers>,
        background: &Background,
        caller: &Arc<Caller>,
        parent: u32,
        action: &Action,
        program: Option<Arc<Program>>,
    ) -> Self {
        Self {
            view: Arc::clone(view),
            callers: Arc::clone(callers),
            caller: Arc::clone(caller),
            parent,
            program,
            names: background.names.of(action),
            started_ms: background.started_ms,
            digests: Mutex::default(),
        }
    }

    /// The digests that were asked for, and so what was decided on.
    pub fn digests(&self) -> Vec<(FileRole, String)> {
        self.digests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Facts for LiveFacts {
    fn ancestors(&self) -> Vec<Subject> {
        self.callers.ancestors(&self.view, self.parent)
    }

    fn digest(&self, role: FileRole) -> Result<String, String> {
        let program = self.program.as_ref().ok_or("the event has no file")?;
        if program.inexecutable {
            return Err("a file that nobody may execute is not looked into".to_owned());
        }
        let file = program.files.get(role).ok_or("the event has no such file")?;
        let found = digest(&self.view, file).map_err(|error| error.to_string())?;
        self.digests.lock().unwrap_or_else(PoisonError::into_inner).push((role, found.clone()));
        Ok(found)
    }

    fn environment(&self, name: &str) -> Option<String> {
        environment(&self.caller, self.program.as_ref()?.environment, name)
    }

    fn standard_stream(&self, number: u32) -> Stream {
        if number > 2 {
            return Stream::Unknown;
        }
        let handle = match self.caller.handle(number as i32) {
            Ok(handle) => handle,
            Err(nix::errno::Errno::EBADF) => return Stream::Closed,
            Err(_) => return Stream::Unknown,
        };
        let Ok(stat) = fstat(&handle) else { return Stream::Unknown };
        match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
            SFlag::S_IFREG | SFlag::S_IFDIR => Stream::File(self.view.name(std::os::fd::AsFd::as_fd(&handle)).path),
            SFlag::S_IFIFO => Stream::Pipe,
            SFlag::S_IFSOCK => self.socket(number as i32),
            kind => match readlinkat(self.caller.directory(), format!("fd/{number}").as_str()) {
                Ok(name) => {
                    let name = name.to_string_lossy().into_owned();
                    let is_terminal = kind == SFlag::S_IFCHR && is_terminal(stat.st_rdev);
                    if is_terminal { Stream::Terminal(name) } else { Stream::Other(name) }
                }
                Err(_) => Stream::Unknown,
            },
        }
    }

    fn names(&self) -> Vec<String> {
        self.names.clone()
    }

    fn started_ms(&self) -> u64 {
        self.started_ms
    }
}

/// Whether a character device is a terminal, by its number (admin-guide/devices.txt of the kernel): what it is called is the
/// choice of whoever has mounted it there.
fn is_terminal(device: u64) -> bool {
    const PTMX: u64 = 2; // a terminal's other end
    match major(device) {
        5 => minor(device) != PTMX,
        // Pseudo-terminals; consoles and serial ports; those on USB, of other machines, of hypervisors.
        3 | 136..=143 | 4 | 166 | 188 | 204 | 229 => true,
        _ => false,
    }
}

impl LiveFacts {
    fn socket(&self, number: i32) -> Stream {
        let Ok(held) = Held::take(&self.caller, number, |socket| sockets::kind(socket)) else { return Stream::Unknown };
        let peer = socket::peer_address(&held.fd).ok().map(|peer| known(held.socket.family, &peer));
        Stream::Socket { socket: held.socket, peer }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminals_are_known_by_their_numbers() {
        let device = |name: &str| nix::sys::stat::stat(name).unwrap().st_rdev;
        let terminal = nix::pty::openpty(None, None).unwrap();
        assert!(is_terminal(fstat(&terminal.slave).unwrap().st_rdev));
        for (name, is) in [("/dev/tty", true), ("/dev/null", false), ("/dev/zero", false), ("/dev/ptmx", false)] {
            assert_eq!(is_terminal(device(name)), is, "{name}");
        }
    }

    #[test]
    fn hosts_files_name_addresses() {
        let names = Names::parse(
            "127.0.0.1 localhost me # not this\n\n# nor this\n::1 localhost\n::ffff:127.0.0.1 mapped\nx y\n",
        );
        let loopback: IpAddr = "127.0.0.1".parse().unwrap();
        assert_eq!(names.0[&loopback], ["localhost", "me", "mapped"]);
        assert_eq!(names.0.len(), 2);
    }
}
