//! Which files may run.

use std::collections::HashSet;

use callgate_sdk::{ConfigError, Exec, File, FileRole, Glob, Verdict, canonical_path, digest};

use crate::forms::json;
use crate::globs::Globs;

/// The lists, compiled.
#[derive(Debug)]
pub(crate) struct Executables {
    allowed: Option<List>,
    denied: List,
}

#[derive(Debug, Default)]
struct List {
    paths: HashSet<String>,
    directories: Vec<String>,
    globs: Globs,
    digests: HashSet<String>,
}

impl Executables {
    /// Compiles the lists. No list of allowed executables: executables are not governed, save those denied.
    ///
    /// # Errors
    /// An entry that is none of the forms.
    pub(crate) fn new(allowed: Option<Vec<String>>, denied: &[String]) -> Result<Self, ConfigError> {
        let allowed = allowed.map(|entries| List::new(&entries, "/allow_executables")).transpose()?;
        Ok(Self { allowed, denied: List::new(denied, "/deny_executables")? })
    }

    /// Whether this may run: the file, and everything that interprets it.
    pub(crate) fn judge(&self, exec: &Exec) -> Verdict {
        for (role, file) in exec.files() {
            if self.denied.has(role, file) {
                return Verdict::deny("executables.denied", format!("{} is in deny_executables", file.path))
                    .hint(format!("remove the entry for {} from deny_executables", json(&file.path)));
            }
        }
        let Some(allowed) = &self.allowed else { return Verdict::allow("executables.not-governed") };
        for (role, file) in exec.files() {
            if allowed.has(role, file) {
                continue;
            }
            if !file.canonical {
                return Verdict::deny(
                    "executables.no-path",
                    format!("{} is no file of the image at that path", file.path),
                )
                .hint(by_content(role, file));
            }
            let interprets = if matches!(role, FileRole::File) { "" } else { ", which interprets it," };
            return Verdict::deny(
                "executables.not-listed",
                format!("{}{interprets} is not in allow_executables", file.path),
            )
            .hint(match allowed.without_its_slash(&file.path) {
                // As an entry that would be a glob.
                _ if file.path.contains('*') => by_content(role, file),
                Some(directory) => format!(
                    "{} in allow_executables stands for a file of that name: write {} for all that is below it",
                    json(directory),
                    json(&format!("{directory}/"))
                ),
                None => format!("add {} to allow_executables", json(&file.path)),
            });
        }
        let runs = exec.interpreters.last().unwrap_or(&exec.file);
        if exec.runs_loader && !allowed.paths.contains(&runs.path) {
            return Verdict::deny(
                "executables.loader",
                format!("{} is a dynamic loader, which runs any program that it is given", runs.path),
            )
            .hint(format!(
                "add {} itself, not as part of a glob or directory, to allow_executables",
                json(&runs.path)
            ));
        }
        if let Some(loader) = &exec.loader
            && !is_system_loader(loader)
            && !allowed.has(FileRole::Loader, loader)
        {
            return Verdict::deny(
                "executables.elf-interpreter",
                format!("its ELF interpreter {} is neither the system's nor in allow_executables", loader.path),
            )
            .hint(format!("add {} to allow_executables", json(&loader.path)));
        }
        Verdict::allow("executables.listed")
    }
}

impl List {
    fn new(entries: &[String], pointer: &str) -> Result<Self, ConfigError> {
        let mut list = Self::default();
        let mut globs = Vec::new();
        for (index, written) in entries.iter().enumerate() {
            let wrong = |message: String| Err(ConfigError::at(format!("{pointer}/{index}"), message));
            if let Some(digest) = written.strip_prefix("sha256:") {
                if digest.len() != 64 || !digest.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                    return wrong(format!("{written:?} is no SHA-256: it takes 64 hexadecimal digits"));
                }
                list.digests.insert(digest.to_ascii_lowercase());
                continue;
            }
            if !written.starts_with('/') {
                return Err(ConfigError::at(
                    format!("{pointer}/{index}"),
                    format!("{written:?} is neither an absolute path nor sha256:…"),
                )
                .hint(path_meant(written)));
            }
            if written.contains('\0') {
                return wrong(format!("{written:?} has a NUL, which no path has"));
            }
            if let Some(star) = written.find('*') {
                if written.ends_with('/') {
                    let all = serde_json::Value::from(format!("{written}**"));
                    return Err(ConfigError::at(
                        format!("{pointer}/{index}"),
                        format!("{written:?} is a glob, and no file's path ends with a slash"),
                    )
                    .hint(format!("{all} is what lies below such directories")));
                }
                // Only what stands before the first star names directories that can be followed.
                let literal = written[..star].rfind('/').unwrap_or(0);
                globs.push(Glob::below(&canonical(&written[..literal]), &written[literal..]));
            } else if written.ends_with('/') {
                list.directories.push(canonical(written) + "/");
            } else {
                list.paths.insert(canonical(written));
            }
        }
        list.globs = Globs::new(globs);
        list.directories.sort_unstable();
        Ok(list)
    }

    fn has(&self, role: FileRole, file: &File) -> bool {
        file.canonical && self.has_path(&file.path)
            || !self.digests.is_empty() && digest(role).is_ok_and(|digest| self.digests.contains(&digest))
    }

    fn has_path(&self, path: &str) -> bool {
        self.paths.contains(path) || !self.directories.is_empty() && self.has_directory_of(path) || self.globs.has(path)
    }

    /// A directory above this path that is listed as if it were a file.
    fn without_its_slash<'a>(&self, path: &'a str) -> Option<&'a str> {
        path.match_indices('/').map(|(slash, _)| &path[..slash]).find(|above| self.paths.contains(*above))
    }

    fn has_directory_of(&self, path: &str) -> bool {
        let mut above = path.match_indices('/').map(|(slash, _)| &path[..=slash]);
        above.any(|above| self.directories.binary_search_by(|directory| directory.as_str().cmp(above)).is_ok())
    }
}

/// What allows a file that no path can name.
fn by_content(role: FileRole, file: &File) -> String {
    match content(role, file) {
        Some(digest) => format!("add \"sha256:{digest}\", the digest of its content, to allow_executables"),
        None => "add sha256: and the digest of its content to allow_executables".to_owned(),
    }
}

/// What was meant by an entry that is no absolute path.
fn path_meant(written: &str) -> String {
    let is_digest = written.len() == 64 && written.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_digest {
        return format!("did you mean \"sha256:{written}\"?");
    }
    let relative = written.trim_start_matches("./");
    if relative.is_empty() || relative.contains(['\0', '~', '$']) || relative.starts_with("../") {
        return "write it from the root, as in \"/usr/bin/env\"".to_owned();
    }
    let among = ["/usr/bin", "/bin", "/usr/local/bin", "/usr/sbin"].map(|place| format!("{place}/{relative}"));
    let found = among.into_iter().find(|path| !relative.contains(['/', '*']) && canonical_path(path).is_some());
    format!("did you mean {}?", json(&found.unwrap_or_else(|| format!("/{relative}"))))
}

/// The digest of a file for a hint, if it costs little.
fn content(role: FileRole, file: &File) -> Option<String> {
    const LITTLE: u64 = 16 << 20;
    (file.size <= LITTLE).then(|| digest(role).ok()).flatten()
}

/// An entry of the lists, for the JSON Schema.
pub(crate) struct Entry;

impl schemars::JsonSchema for Entry {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Executable".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "pattern": "^(/|sha256:[0-9A-Fa-f]{64}$)" })
    }
}

/// The path without symbolic links and without a slash at the end, as events name files. Of a path to nothing, the part
/// that exists is followed: the file may be made later.
fn canonical(path: &str) -> String {
    let path = path.trim_end_matches('/');
    let mut known = path;
    loop {
        if known.is_empty() {
            return path.to_owned();
        }
        if let Some(found) = canonical_path(known) {
            return found.trim_end_matches('/').to_owned() + &path[known.len()..];
        }
        known = &known[..known.rfind('/').unwrap_or(0)];
    }
}

/// The loader that programs of the image name: in a library directory, under a loader's name, writable only by root.
fn is_system_loader(loader: &File) -> bool {
    let writable_by_others = loader.mode & 0o022 != 0;
    let Some((directory, name)) = loader.path.rsplit_once('/') else { return false };
    let library = ["/lib", "/lib64", "/lib32", "/libx32", "/usr/lib", "/usr/lib64", "/usr/lib32"]
        .iter()
        .any(|place| directory == *place || directory.strip_prefix(place).is_some_and(|rest| rest.starts_with('/')));
    let named =
        name.starts_with("ld-") || name.starts_with("ld.so") || name.starts_with("ld64.so") || name == "libc.so";
    loader.canonical && loader.uid == 0 && !writable_by_others && library && named
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn file(path: &str) -> File {
        File {
            path: path.into(),
            canonical: true,
            device: 1,
            inode: 1,
            uid: 0,
            gid: 0,
            mode: 0o100_755,
            size: 1,
            changed_ns: 0,
        }
    }

    fn exec(path: &str) -> Exec {
        Exec {
            requested: path.into(),
            file: file(path),
            interpreters: vec![],
            loader: None,
            runs_loader: false,
            arguments: vec![],
            arguments_cut: false,
            directory: "/".into(),
        }
    }

    fn list(entries: &[&str]) -> Executables {
        let entries = entries.iter().map(|entry| (*entry).to_owned()).collect();
        Executables::new(Some(entries), &[]).unwrap()
    }

    fn allowed(list: &Executables, exec: &Exec) -> bool {
        matches!(list.judge(exec), Verdict::Allow(_))
    }

    #[test]
    fn only_what_is_listed_runs() {
        let list = list(&["/usr/bin/ls", "/opt/app/", "/srv/*/run"]);
        for path in ["/usr/bin/ls", "/opt/app/deep/tool", "/srv/a/run"] {
            assert!(allowed(&list, &exec(path)), "{path}");
        }
        for path in ["/usr/bin/whoami", "/opt/app", "/opt/application", "/srv/a/b/run"] {
            assert!(!allowed(&list, &exec(path)), "{path}");
        }
    }

    #[test]
    fn a_directory_without_its_slash_is_pointed_out() {
        let Verdict::Deny(denial) = list(&["/opt/app", "/bin/sh"]).judge(&exec("/opt/app/bin/x")) else { panic!() };
        let hint = denial.hint.unwrap();
        assert!(hint.contains("write \"/opt/app/\" for all that is below it"), "{hint}");
    }

    #[test]
    fn what_is_no_path_is_answered_with_what_was_meant() {
        let digest = "0123456789abcdef".repeat(4);
        for (entry, hint) in [
            ("bin/ls", "did you mean \"/bin/ls\"?".to_owned()),
            ("./opt/\"x\"", "did you mean \"/opt/\\\"x\\\"\"?".to_owned()),
            (&digest, format!("did you mean \"sha256:{digest}\"?")),
            ("../x", "write it from the root, as in \"/usr/bin/env\"".to_owned()),
        ] {
            let error = Executables::new(Some(vec![entry.to_owned()]), &[]).unwrap_err();
            assert_eq!(error.hint, Some(hint), "{entry}");
        }
        let error = Executables::new(None, &["/bin/l\0s".to_owned()]).unwrap_err();
        assert_eq!(error.pointer, "/deny_executables/0");
    }

    #[test]
    fn a_glob_for_directories_is_a_mistake() {
        let error = Executables::new(Some(vec!["/opt/*/".to_owned()]), &[]).unwrap_err();
        assert_eq!(error.pointer, "/allow_executables/0");
        assert_eq!(error.hint.as_deref(), Some("\"/opt/*/**\" is what lies below such directories"));
    }

    #[test]
    fn a_script_needs_itself_and_its_interpreter() {
        let mut script = exec("/app/run.sh");
        script.interpreters = vec![file("/usr/bin/dash")];
        assert!(!allowed(&list(&["/app/run.sh"]), &script));
        assert!(!allowed(&list(&["/usr/bin/dash"]), &script));
        assert!(allowed(&list(&["/usr/bin/dash", "/app/run.sh"]), &script));
    }

    #[test]
    fn a_listed_path_on_another_mount_is_not_the_listed_file() {
        let mut other = exec("/usr/bin/ls");
        other.file.canonical = false;
        assert!(!allowed(&list(&["/usr/bin/ls"]), &other));
    }

    #[test]
    fn a_loader_runs_only_if_it_is_listed_itself() {
        let mut loader = exec("/usr/lib/ld-linux-x86-64.so.2");
        loader.runs_loader = true;
        assert!(!allowed(&list(&["/usr/lib/"]), &loader));
        assert!(!allowed(&list(&["/usr/lib/*"]), &loader));
        assert!(allowed(&list(&["/usr/lib/ld-linux-x86-64.so.2"]), &loader));
    }

    #[test]
    fn an_elf_interpreter_is_the_systems_or_listed() {
        let mut program = exec("/app/tool");
        program.loader = Some(file("/tmp/ld-evil.so"));
        assert!(!allowed(&list(&["/app/tool"]), &program));
        program.loader = Some(file("/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"));
        assert!(allowed(&list(&["/app/tool"]), &program));
        program.loader = Some(File { mode: 0o100_777, ..file("/usr/lib/ld-linux-x86-64.so.2") });
        assert!(!allowed(&list(&["/app/tool"]), &program));
    }

    proptest::proptest! {
        #[test]
        fn any_entry_is_taken_or_refused_without_a_panic(entry: String, path: String) {
            if let Ok(list) = Executables::new(Some(vec![entry]), &[]) {
                list.judge(&exec(&path));
            }
        }

        #[test]
        fn an_exact_path_allows_itself_and_nothing_else(
            a in "(/[a-c?\\[\\]{}!,\\\\-]{1,3}){1,3}",
            b in "(/[a-c?\\[\\]{}!,\\\\*-]{1,3}){1,3}",
        ) {
            assert!(allowed(&list(&[&a]), &exec(&a)));
            assert_eq!(allowed(&list(&[&a]), &exec(&b)), a == b);
            let denied = |list: &Executables, path: &str| !allowed(list, &exec(path));
            let list = Executables::new(None, std::slice::from_ref(&a)).unwrap();
            assert!(denied(&list, &a));
            assert_eq!(denied(&list, &b), a == b);
        }

        #[test]
        fn a_directory_allows_what_lies_below_it_and_nothing_else(
            a in "(/[a-b?\\[\\]{}!\\\\]{1,2}){1,2}",
            b in "(/[a-b?\\[\\]{}!\\\\]{1,2}){1,3}",
        ) {
            let directory = format!("{a}/");
            assert!(allowed(&list(&[&directory]), &exec(&format!("{a}/x"))));
            assert_eq!(allowed(&list(&[&directory]), &exec(&b)), b.starts_with(&directory));
        }

        #[test]
        fn what_a_hint_says_allows_that_file_and_no_other(
            a in "(/[a-c?\\[\\]{}!,\\\\\"*-]{1,3}){1,3}",
            b in "(/[a-c?\\[\\]{}!,\\\\\"*-]{1,3}){1,3}",
        ) {
            let Verdict::Deny(denial) = list(&[]).judge(&exec(&a)) else { panic!("{a} is allowed") };
            let hint = denial.hint.unwrap();
            let entry = hint.strip_prefix("add ").and_then(|hint| hint.strip_suffix(" to allow_executables")).unwrap();
            if a.contains('*') {
                assert!(entry.starts_with("sha256:"), "{hint}");
            } else {
                let list = list(&[&serde_json::from_str::<String>(entry).unwrap()]);
                assert!(allowed(&list, &exec(&a)), "{hint}");
                assert_eq!(allowed(&list, &exec(&b)), a == b);
            }
        }
    }
}
