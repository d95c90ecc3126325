//! Files that the workload cannot have written.
//!
//! May depend on `sys` and the file system.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, fstat, fstatat};
use nix::sys::statvfs::{FsFlags, fstatvfs};
use nix::unistd::{AccessFlags, faccessat};

use crate::sys::credentials::{CAP_SETGID, CAP_SETUID, CAP_SYS_ADMIN, Identity};

/// How the workload could have written `file`, which was found as `name` in `directory`; `None` if it could not. `workload`
/// is the most that it may be, and no more than we are.
///
/// # Errors
/// The kernel's: we can't tell.
pub fn writable(
    file: &OwnedFd,
    directory: &OwnedFd,
    name: &Path,
    workload: &Identity,
) -> nix::Result<Option<&'static str>> {
    // CHOWN, DAC_OVERRIDE, FOWNER (capabilities(7)): to those who have them permissions mean nothing. SETGID, SETUID: who has
    // them may be of any group, or any owner.
    const ABOVE_PERMISSIONS: u64 = 1 << 0 | 1 << 1 | 1 << 3 | CAP_SETGID | CAP_SETUID;
    // Opens a file by its handle through whatever mount of the same file system can be written (open_by_handle_at(2)).
    const CAP_DAC_READ_SEARCH: u64 = 1 << 2;
    let may = |capabilities| workload.capabilities & capabilities != 0;
    let read_only = |it: &OwnedFd| fstatvfs(it).map(|stat| stat.flags().contains(FsFlags::ST_RDONLY));
    let itself = fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let (found, around) = (fstat(file)?, fstat(directory)?);
    // A link in the directory may lead through others.
    let is_link = (itself.st_dev, itself.st_ino) != (found.st_dev, found.st_ino);
    if read_only(file)? {
        // What cannot be written may yet say what the workload wants, if that chooses the file.
        let chosen = is_link && !(read_only(directory)? && around.st_dev == found.st_dev);
        return Ok(match () {
            () if may(CAP_SYS_ADMIN) => Some("may mount file systems"),
            () if may(CAP_DAC_READ_SEARCH) => Some("may open files by their handles"),
            () if chosen => Some("may have made the link to it"),
            () => None,
        });
    }
    if may(ABOVE_PERMISSIONS) {
        return Ok(Some("stands above file permissions"));
    }
    if may(CAP_SYS_ADMIN) {
        return Ok(Some("may mount file systems"));
    }
    if is_link {
        return Ok(Some("may have made the link to it"));
    }
    if [found.st_uid, around.st_uid].contains(&workload.uid) {
        return Ok(Some("runs as its owner"));
    }
    let may_write = |name: &Path| faccessat(directory.as_fd(), name, AccessFlags::W_OK, AtFlags::AT_EACCESS).is_ok();
    Ok((may_write(name) || may_write(Path::new("."))).then_some("may write it"))
}

/// What a file holds that the workload cannot have written.
#[derive(Debug)]
pub struct Believed(Vec<u8>);

impl AsRef<[u8]> for Believed {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Reads a file of a directory, if it is to be believed; see [`writable`].
///
/// # Errors
/// It cannot be read, or is not to be believed.
pub fn read(directory: &OwnedFd, name: &Path, workload: &Identity) -> io::Result<Believed> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let file = openat(directory, name, flags, Mode::empty())?;
    match writable(&file, directory, name, workload)? {
        Some(how) => Err(io::Error::other(format!("the workload {how} and so could have written it"))),
        None => {
            let mut file = File::from(file);
            if !file.metadata()?.is_file() {
                return Err(Errno::EINVAL.into());
            }
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(Believed(bytes))
        }
    }
}
