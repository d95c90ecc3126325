//! execve(2), execveat(2) → the program that would run.

use std::cell::OnceCell;
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use nix::errno::Errno;
use nix::fcntl::{OFlag, readlinkat};
use nix::sys::stat::{SFlag, fstat};
use nix::sys::statfs::{FUSE_SUPER_MAGIC, fstatfs};
use object::Endianness;
use object::elf::{FileHeader32, FileHeader64};
use object::read::elf::{FileHeader, ProgramHeader};
use object::read::{ReadCache, ReadRef};

use crate::decide::FileRole;
use crate::event::{Action, Exec, File};
use crate::intercept::caller::Caller;
use crate::intercept::path::View;
use crate::sys::notify::Notification;

/// How many bytes of arguments are copied; what is longer is marked as cut.
const ARGUMENT_BYTES: usize = 64 * 1024;
/// How many arguments are copied.
const ARGUMENT_COUNT: usize = 1024;
/// `PATH_MAX` (limits.h), with the NUL.
const PATH_MAX: usize = 4096;
/// `BINPRM_BUF_SIZE` (include/uapi/linux/binfmts.h): how much of a file's beginning the kernel looks at.
pub const HEAD: usize = 256;
/// How many interpreters the kernel follows (`exec_binprm`, fs/exec.c: "This allows 4 levels of binfmt rewrites").
const INTERPRETERS: usize = 5;

/// The private copy of an exec: what must begin to run.
#[derive(Debug)]
pub struct Program {
    /// The files, pinned.
    pub files: Files,
    /// What `/proc/PID/cmdline` must begin with, if all arguments were copied.
    pub arguments: Vec<Vec<u8>>,
    /// Whether `arguments` are only the first ones.
    pub cut: bool,
    /// Where the caller keeps the environment of the new program.
    pub environment: u64,
    /// Whether we may not read one of the files that say what else is run, so that this is not known.
    pub unreadable: bool,
    /// Whether the kernel will refuse it with `EACCES` anyway: one of the files must not be executed by anybody.
    pub inexecutable: bool,
    /// Whether the caller only asks whether it may be run (`AT_EXECVE_CHECK`, Linux 6.14): then nothing begins to run.
    pub only_asked: bool,
    /// What `arguments` are counted for.
    _room: Room,
}

/// How many bytes of arguments are held at the moment, for all callers together.
static HELD: AtomicUsize = AtomicUsize::new(0);
/// How many there may be: a crowd of callers that wait for their turn must not take all memory. There are up to five copies
/// of each.
const HELD_MAX: usize = 32 << 20;

#[derive(Debug, Default)]
struct Room(usize);

impl Room {
    fn more(&mut self, bytes: usize) -> Result<(), Errno> {
        self.0 += bytes;
        if HELD.fetch_add(bytes, Relaxed) + bytes > HELD_MAX { Err(Errno::ENOMEM) } else { Ok(()) }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        HELD.fetch_sub(self.0, Relaxed);
    }
}

/// The files of an exec, open.
#[derive(Debug)]
pub struct Files {
    /// What was asked for.
    pub file: OwnedFd,
    /// The chain of interpreters.
    pub interpreters: Vec<OwnedFd>,
    /// The dynamic loader.
    pub loader: Option<OwnedFd>,
}

impl Files {
    /// What the kernel runs: the last interpreter, or the file itself.
    pub fn executable(&self) -> BorrowedFd<'_> {
        self.interpreters.last().unwrap_or(&self.file).as_fd()
    }

    /// The file in this role.
    pub fn get(&self, role: FileRole) -> Option<BorrowedFd<'_>> {
        match role {
            FileRole::File => Some(self.file.as_fd()),
            FileRole::Interpreter(n) => self.interpreters.get(n).map(AsFd::as_fd),
            FileRole::Loader => self.loader.as_ref().map(AsFd::as_fd),
        }
    }
}

/// Copies the arguments of an exec and finds the files that it means.
///
/// # Errors
/// The errno that the kernel would answer, for what could not be run anyway.
pub fn read(view: &View, caller: &Caller, call: &Notification, at: bool) -> Result<(Action, Program), Errno> {
    let [a, b, c, d, e, _] = call.args;
    let (dirfd, path, argv, envp, flags) =
        if at { (a as i32, b, c, d, e as i32) } else { (libc::AT_FDCWD, a, b, c, 0) };
    if flags & !(libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW | libc::AT_EXECVE_CHECK) != 0 {
        return Err(Errno::EINVAL);
    }
    let only_asked = flags & libc::AT_EXECVE_CHECK != 0;
    let requested = caller.copy_string(path, PATH_MAX)?;
    let directory = Directory { view, caller, opened: OnceCell::new() };
    let by_descriptor = requested.is_empty() && flags & libc::AT_EMPTY_PATH != 0;
    let follow = flags & libc::AT_SYMLINK_NOFOLLOW == 0;
    let file = if dirfd == libc::AT_FDCWD || requested.starts_with(b"/") {
        if by_descriptor {
            return Err(Errno::EACCES);
        } // the working directory
        directory.resolve(&requested, follow)?
    } else {
        let base = caller.handle(dirfd)?;
        if by_descriptor { base } else { view.resolve(caller, base, &requested, follow)? }
    };
    let mut inexecutable = !is_executable(file.as_fd())?;
    let mut room = Room::default();
    // The kernel looks at the file first.
    let copied = copy_arguments(caller, argv, |bytes| room.more(bytes));
    let (arguments, cut) = copied.map_err(|error| if inexecutable { Errno::EACCES } else { error })?;

    let mut interpreters: Vec<OwnedFd> = Vec::new();
    let mut loader = None;
    // What the interpreter is told to read: the kernel names a file that has only a descriptor /dev/fd/N.
    let mut script_name = match (by_descriptor, dirfd) {
        (true, _) => format!("/dev/fd/{dirfd}").into_bytes(),
        (false, libc::AT_FDCWD) => requested.clone(),
        (false, _) if requested.starts_with(b"/") => requested.clone(),
        (false, _) => [format!("/dev/fd/{dirfd}/").into_bytes(), requested.clone()].concat(),
    };
    let given = arguments.clone();
    let mut arguments = arguments;
    let mut unreadable = false;
    while !inexecutable {
        let executable = interpreters.last().unwrap_or(&file).as_fd();
        match read_head(view, executable)? {
            Head::Script { interpreter, argument } => {
                if interpreters.len() == INTERPRETERS {
                    return Err(Errno::ELOOP);
                }
                if interpreter.is_empty() {
                    return Err(Errno::EACCES); // open_exec takes no name for the working directory
                }
                let next = match directory.resolve(&interpreter, true) {
                    Err(Errno::ENOENT) if only_asked => break, // the kernel does not look into the file (`bprm_execve`, fs/exec.c)
                    next => next?,
                };
                inexecutable = !is_executable(next.as_fd())?;
                // bprm_change_interp: argv[0] makes room for the interpreter, its argument and the script's name.
                if !arguments.is_empty() {
                    arguments.remove(0);
                }
                let words = [Some(interpreter.clone()), argument, Some(script_name)];
                arguments.splice(0..0, words.into_iter().flatten());
                script_name = interpreter;
                interpreters.push(next);
            }
            Head::Elf { loader: Some(path) } => {
                let found = match directory.resolve(&path, true) {
                    Err(Errno::ENOENT) if only_asked => break,
                    found => found?,
                };
                inexecutable = !is_executable(found.as_fd())?;
                loader = Some(found);
                break;
            }
            Head::Elf { loader: None } | Head::Unknown => break,
            Head::Unreadable => {
                unreadable = true;
                break;
            }
        }
    }

    let named = view.name(file.as_fd())?;
    let interpreter_names: Vec<File> =
        interpreters.iter().map(|file| view.name(file.as_fd())).collect::<Result<_, _>>()?;
    let loader_name = loader.as_ref().map(|file| view.name(file.as_fd())).transpose()?;
    // What interprets it and has no path is as fileless as the program.
    let fileless = is_fileless(&named, file.as_fd())
        || interpreters.iter().zip(&interpreter_names).any(|(file, name)| is_fileless(name, file.as_fd()))
        || loader.as_ref().zip(loader_name.as_ref()).is_some_and(|(file, name)| is_fileless(name, file.as_fd()));
    let files = Files { file, interpreters, loader };
    let exec = Exec {
        requested: lossy(&requested),
        runs_loader: is_loader(interpreter_names.last().unwrap_or(&named), files.loader.is_none()),
        file: named,
        interpreters: interpreter_names,
        loader: loader_name,
        arguments: given.iter().map(|argument| lossy(argument)).collect(),
        arguments_cut: cut,
        directory: directory.name(),
    };
    let action = if fileless { Action::ExecFileless(exec) } else { Action::Exec(exec) };
    let environment = envp;
    Ok((action, Program { files, arguments, cut, environment, unreadable, inexecutable, only_asked, _room: room }))
}

/// The caller's working directory, which has to be opened only for relative paths.
struct Directory<'a> {
    view: &'a View,
    caller: &'a Caller,
    opened: OnceCell<OwnedFd>,
}

impl Directory<'_> {
    fn resolve(&self, path: &[u8], follow_last: bool) -> Result<OwnedFd, Errno> {
        let base = match (self.opened.get(), path.first()) {
            (Some(opened), _) => opened.as_fd(),
            (None, Some(b'/')) => self.caller.root()?, // where an absolute path begins is not looked at
            (None, _) => {
                let _ = self.opened.set(self.view.caller_directory(self.caller, "cwd")?);
                self.opened.get().ok_or(Errno::ESRCH)?.as_fd()
            }
        };
        self.view.resolve(self.caller, base, path, follow_last)
    }

    fn name(&self) -> String {
        let link = match self.opened.get() {
            Some(opened) => self.view.link_of(opened.as_fd()),
            None => readlinkat(self.caller.directory(), "cwd"),
        };
        link.unwrap_or_default().to_string_lossy().into_owned()
    }
}

fn errno(error: io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// Whether the kernel runs it for anybody: root, too, may run only what has a bit that says so. What has none is decided on,
/// so that an attempt shows, but not looked into: some of it waits for a reader (`/proc/kmsg`).
fn is_executable(file: BorrowedFd<'_>) -> Result<bool, Errno> {
    let stat = fstat(file)?;
    match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFREG => Ok(stat.st_mode & 0o111 != 0),
        SFlag::S_IFLNK => Err(Errno::ELOOP),
        _ => Err(Errno::EACCES),
    }
}

/// A file that nobody can find by a path: a memfd, `O_TMPFILE`, or one whose last link is gone.
fn is_fileless(named: &File, file: BorrowedFd<'_>) -> bool {
    !named.canonical && (fstat(file).map_or(true, |stat| stat.st_nlink == 0) || named.path.ends_with(" (deleted)"))
}

/// Whether running this runs whatever it is given as an argument: a dynamic loader names no loader itself, and is called
/// as ld.so(8) and its relatives are.
fn is_loader(executable: &File, names_no_loader: bool) -> bool {
    let name = Path::new(&executable.path).file_name().unwrap_or_default().as_bytes();
    names_no_loader && (name.starts_with(b"ld-") || name.starts_with(b"ld.so") || name.starts_with(b"ld64.so"))
        || name.starts_with(b"ld-musl-")
        || name == b"libc.so"
}

fn copy_arguments(
    caller: &Caller,
    argv: u64,
    mut hold: impl FnMut(usize) -> Result<(), Errno>,
) -> Result<(Vec<Vec<u8>>, bool), Errno> {
    let mut arguments = Vec::new();
    if argv == 0 {
        return Ok((arguments, false));
    }
    let mut room = ARGUMENT_BYTES;
    let mut pointers: Vec<u64> = Vec::new();
    for index in 0..=ARGUMENT_COUNT {
        if index == pointers.len() {
            copy_pointers(caller, argv.wrapping_add(index as u64 * 8), &mut pointers)?;
        }
        if pointers[index] == 0 {
            return Ok((arguments, false));
        }
        if index == ARGUMENT_COUNT {
            break;
        }
        match caller.copy_string(pointers[index], room) {
            Ok(argument) => {
                room = room.saturating_sub(argument.len() + 1);
                hold(argument.len())?;
                arguments.push(argument);
            }
            Err(Errno::ENAMETOOLONG) => break,
            Err(error) => return Err(error),
        }
        if room == 0 {
            break;
        }
    }
    Ok((arguments, true))
}

/// Copies pointers, at least one, and as many as a glance at the page brings.
fn copy_pointers(caller: &Caller, at: u64, pointers: &mut Vec<u64>) -> Result<(), Errno> {
    let mut block = [0; 256];
    let wanted = (4096 - at % 4096).clamp(8, block.len() as u64) as usize;
    let got = caller.copy_some(at, &mut block[..wanted]);
    if got < 8 {
        return Err(Errno::EFAULT);
    }
    let words = block[..got].chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().unwrap_or_default()));
    pointers.extend(words);
    Ok(())
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What the beginning of a file says of how the kernel runs it.
#[derive(Debug, PartialEq, Eq)]
enum Head {
    Script {
        interpreter: Vec<u8>,
        argument: Option<Vec<u8>>,
    },
    Elf {
        loader: Option<Vec<u8>>,
    },
    /// Neither: the kernel will refuse it, or has a binfmt_misc handler, which the verification then finds.
    Unknown,
    /// The caller may run it, and we may not read it.
    Unreadable,
}

fn read_head(view: &View, file: BorrowedFd<'_>) -> Result<Head, Errno> {
    let file = match view.reopen(file, OFlag::O_RDONLY | OFlag::O_NONBLOCK) {
        Ok(file) => file,
        Err(Errno::EACCES | Errno::EPERM) => return Ok(Head::Unreadable),
        Err(error) => return Err(error),
    };
    let file = fs::File::from(file);
    // A page: in nearly every program it has the program headers and the loader's name, too.
    let mut page = [0; 4096];
    let mut length = 0;
    while length < HEAD {
        match file.read_at(&mut page[length..], length as u64) {
            Ok(0) => break,
            Ok(n) => length += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(errno(error)),
        }
    }
    if let (Some(head), true) = (page.first_chunk(), page.starts_with(b"#!")) {
        return Ok(script(head));
    }
    if page.starts_with(b"\x7fELF") {
        let loader = match elf_interpreter(&page[..length], page[4]) {
            Ok(found) => found,
            Err(_) if length < page.len() => None,
            Err(_) => elf_interpreter(&ReadCache::new(file), page[4]).unwrap_or(None),
        };
        return Ok(Head::Elf { loader });
    }
    Ok(Head::Unknown)
}

/// The interpreter of a file that begins like this (what it has less is zero), if it is a script.
pub fn interpreter(head: &[u8; HEAD]) -> Option<Vec<u8>> {
    match script(head) {
        Head::Script { interpreter, .. } if head.starts_with(b"#!") => Some(interpreter),
        _ => None,
    }
}

/// `load_script` (fs/binfmt_script.c): the first line, without blanks at its ends, up to the first blank, and the rest as
/// one argument, even an empty one. A line that does not end within the head (the kernel looks for its end no further than
/// a NUL) counts only if the interpreter's name does.
fn script(head: &[u8; HEAD]) -> Head {
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let ends_name = |byte: &u8| blank(byte) || *byte == 0;
    let text = &head[2..];
    let line = match text.iter().position(|byte| matches!(byte, b'\n' | 0)) {
        Some(end) if text[end] == b'\n' => &text[..end],
        _ => {
            let begin = text.iter().position(|byte| !blank(byte)).unwrap_or(text.len());
            if !text[begin..].iter().any(ends_name) {
                return Head::Unknown;
            }
            &text[..text.len() - 1]
        }
    };
    let line = &line[line.iter().position(|byte| !blank(byte)).unwrap_or(line.len())..];
    let line = &line[..line.iter().rposition(|byte| !blank(byte)).map_or(0, |last| last + 1)];
    let end = line.iter().position(ends_name).unwrap_or(line.len());
    if line.is_empty() {
        return Head::Unknown;
    }
    let argument = line[end..].iter().position(|byte| !blank(byte)).filter(|skipped| *skipped > 0).map(|skipped| {
        let rest = &line[end + skipped..];
        rest[..rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len())].to_vec()
    });
    Head::Script { interpreter: line[..end].to_vec(), argument }
}

/// What there is of a file cannot be understood.
struct Malformed;

impl From<object::Error> for Malformed {
    fn from(_: object::Error) -> Self {
        Self
    }
}

/// The loader that an ELF file names, if it names one.
fn elf_interpreter<'data>(data: impl ReadRef<'data>, class: u8) -> Result<Option<Vec<u8>>, Malformed> {
    const ELFCLASS32: u8 = 1;
    if class == ELFCLASS32 {
        interpreter_of::<FileHeader32<Endianness>, _>(data)
    } else {
        interpreter_of::<FileHeader64<Endianness>, _>(data)
    }
}

fn interpreter_of<'data, H, R>(data: R) -> Result<Option<Vec<u8>>, Malformed>
where
    H: FileHeader<Endian = Endianness>,
    R: ReadRef<'data>,
{
    let header = H::parse(data)?;
    let endian = header.endian()?;
    // The first one counts (load_elf_binary, fs/binfmt_elf.c); its length is bounded by PATH_MAX there.
    for segment in header.program_headers(endian, data)? {
        if segment.p_type(endian) == object::elf::PT_INTERP {
            let length: u64 = segment.p_filesz(endian).into();
            if !(2..=PATH_MAX as u64).contains(&length) {
                return Ok(None);
            }
            let path = data.read_bytes_at(segment.p_offset(endian).into(), length).map_err(|()| Malformed)?;
            return Ok(Some(path.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()));
        }
    }
    Ok(None)
}

/// How large a file may be whose content is digested: a decision waits for it, and others for the decision.
const DIGESTED: u64 = 1 << 29;

/// SHA-256 of an open file's content, as it is now.
///
/// # Errors
/// It cannot be read, or not in good time: it is too large, or a process of the workload would have to supply it.
pub fn digest(view: &View, file: BorrowedFd<'_>) -> io::Result<String> {
    use sha2::{Digest, Sha256};
    if fstat(file)?.st_size as u64 > DIGESTED {
        return Err(io::Error::other(format!("it is larger than {} MiB", DIGESTED >> 20)));
    }
    if fstatfs(file)?.filesystem_type() == FUSE_SUPER_MAGIC && !view.name(file)?.canonical {
        return Err(io::Error::other("it is on a FUSE file system that was mounted later"));
    }
    let file = fs::File::from(view.reopen(file, OFlag::O_RDONLY | OFlag::O_NONBLOCK)?); // a lease (fcntl(2)) is not waited for
    let mut file = file.take(DIGESTED + 1); // it may be growing
    let mut hash = Sha256::new();
    let mut part = vec![0; 128 * 1024];
    loop {
        match file.read(&mut part) {
            Ok(0) => break,
            Ok(n) => hash.update(&part[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(hex::encode(hash.finalize()))
}

/// The environment block that the caller hands to the new program, and whether there was more. At most 64 KiB are looked at.
///
/// # Errors
/// `EFAULT`: it is not there.
pub fn environment(caller: &Caller, envp: u64) -> Result<(Vec<Vec<u8>>, bool), Errno> {
    copy_arguments(caller, envp, |_| Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &[u8]) -> [u8; HEAD] {
        let mut head = [0; HEAD];
        head[..text.len()].copy_from_slice(text);
        head
    }

    fn found(interpreter: &str, argument: Option<&str>) -> Head {
        Head::Script {
            interpreter: interpreter.as_bytes().to_vec(),
            argument: argument.map(|argument| argument.as_bytes().to_vec()),
        }
    }

    #[test]
    fn a_script_names_its_interpreter_as_the_kernel_reads_it() {
        assert_eq!(script(&head(b"#!/bin/sh\n")), found("/bin/sh", None));
        assert_eq!(script(&head(b"#! \t/bin/sh  -e x \nfoo")), found("/bin/sh", Some("-e x")));
        assert_eq!(script(&head(b"#!/bin/sh")), found("/bin/sh", None));
        assert_eq!(script(&head(b"#!/bin/sh \0x\n")), found("/bin/sh", Some("")));
        assert_eq!(script(&head(b"#!/bin/sh\0 x\n")), found("/bin/sh", None));
        assert_eq!(script(&head(b"#!/bin/sh\r\n")), found("/bin/sh\r", None));
        assert_eq!(script(&head(b"#!\n")), Head::Unknown);
        assert_eq!(script(&[b'x'; HEAD]), Head::Unknown);
    }

    proptest::proptest! {
        #[test]
        fn any_first_line_is_read_without_a_panic(text: Vec<u8>) {
            let mut head = [0; HEAD];
            let length = text.len().min(HEAD);
            head[..length].copy_from_slice(&text[..length]);
            script(&head);
        }
    }
}
