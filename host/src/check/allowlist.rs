//! What a configuration of the allowlist means on this machine.

use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{Report, others_can_write};
use crate::decide::{Chain, KnownFacts};
use crate::event::{Action, Event, Exec, File, Subject};
use crate::intercept::exec::{self, HEAD};
use crate::policy::PluginSettings;

/// As many interpreters as the kernel follows (`exec_binprm`, fs/exec.c).
const INTERPRETERS: usize = 5;
/// As many directory entries are looked at for a glob; beyond, it is taken to match something.
const LOOKED_AT: usize = 10_000;

/// Says what this configuration means. The chain is asked what becomes of the executables that are listed.
pub(super) fn report(report: &mut Report<'_>, settings: &PluginSettings, chain: &mut Chain) {
    let Ok(config) = serde_json::from_str::<Value>(&settings.config) else { return };
    executables(report, settings, &config, chain);
    let place = &settings.config_place;
    if let Some(section) = config.get("network") {
        network(report, &format!("{place}/network"), section);
    }
    if let Some(section) = config.get("users") {
        users(report, &format!("{place}/users"), section);
    }
}

fn executables(report: &mut Report<'_>, settings: &PluginSettings, config: &Value, chain: &mut Chain) {
    let entries = |key: &str| {
        let list = config.get(key).and_then(Value::as_array).into_iter().flatten();
        list.filter_map(|entry| Some(entry.as_str()?.to_owned())).enumerate().collect::<Vec<_>>()
    };
    let place = |key: &str, index: usize| format!("{}/{key}/{index}", settings.config_place);
    let (allowed, denied) = (entries("allow_executables"), entries("deny_executables"));
    if config.get("allow_executables").is_some() {
        let what = if allowed.len() == 1 { "entry" } else { "entries" };
        report.line(&format!("  allows the executables of {} {what} and no others", allowed.len()));
    } else if denied.is_empty() {
        report.line("  allows every executable");
    } else {
        report.line("  allows every executable that is not denied");
        let warning = "without allow_executables a copy of a denied file runs under any other name";
        report.warn(&format!("{}/deny_executables", settings.config_place), warning);
    }
    let by_content = allowed.iter().chain(&denied).any(|(_, entry)| entry.starts_with("sha256:"));
    for (index, entry) in &allowed {
        for warning in surprises(entry) {
            report.warn(&place("allow_executables", *index), &warning);
        }
        if let Some(why) = refusal(entry, &settings.name, chain, by_content) {
            report.warn(&place("allow_executables", *index), &format!("{entry} does not run: {why}"));
        }
    }
    for (index, entry) in denied {
        if let Surroundings::Missing = look(&entry) {
            report.warn(&place("deny_executables", index), &format!("there is no {entry} yet"));
        }
        if matches_nothing(&entry) {
            report.warn(&place("deny_executables", index), &format!("{entry} matches nothing yet"));
        }
    }
}

/// Why this plugin denies an entry's file, though it is listed: the file is a script whose interpreter is not, or denied too.
fn refusal(entry: &str, plugin: &str, chain: &mut Chain, by_content: bool) -> Option<String> {
    let path = fs::canonicalize(entry).ok().filter(|_| entry.starts_with('/'))?;
    let mut files = vec![file(&path)?];
    let mut at = path;
    while files.len() <= INTERPRETERS
        && let Some(interpreter) = interpreter(&at)
    {
        at = fs::canonicalize(interpreter).ok()?;
        files.push(file(&at)?);
    }
    let digests = files.iter().filter(|_| by_content).filter_map(|file| {
        let content = fs::read(&file.path).ok()?;
        Some((file.path.clone(), hex::encode(Sha256::digest(content))))
    });
    let facts = KnownFacts { digests: digests.collect(), ..KnownFacts::default() };
    let asked = files.remove(0);
    let exec = Exec { requested: entry.to_owned(), file: asked, interpreters: files, ..Exec::default() };
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let subject = Subject { uid, gid, ..Subject::default() };
    let mut event = Event { sequence: 0, time_ms: 0, subject, action: Action::Exec(exec) };
    let facts = facts.about(&event);
    let decision = chain.decide(&mut event, &facts);
    let denials = decision.denial.iter().map(|denial| (&decision.plugin, denial));
    let mut denials = denials.chain(decision.candidates.iter().map(|(by, denial)| (by, denial)));
    denials
        .find(|(by, denial)| *by == plugin && denial.rule.starts_with("executables."))
        .map(|(_, denial)| denial.reason.clone())
}

/// A regular file that has a bit that says it may be run.
fn file(path: &Path) -> Option<File> {
    let metadata = fs::metadata(path).ok().filter(|metadata| metadata.is_file() && metadata.mode() & 0o111 != 0)?;
    Some(File {
        path: path.to_str()?.to_owned(),
        canonical: true,
        device: metadata.dev(),
        inode: metadata.ino(),
        uid: metadata.uid(),
        gid: metadata.gid(),
        mode: metadata.mode(),
        size: metadata.size(),
        changed_ns: metadata.ctime() * 1_000_000_000 + metadata.ctime_nsec(),
    })
}

/// The interpreter that a script names.
fn interpreter(path: &Path) -> Option<PathBuf> {
    let mut start = Vec::new();
    fs::File::open(path).ok()?.take(HEAD as u64).read_to_end(&mut start).ok()?;
    start.resize(HEAD, 0);
    let name = PathBuf::from(OsString::from_vec(exec::interpreter(start.first_chunk()?)?));
    name.is_absolute().then_some(name)
}

/// What is at the path of an entry.
enum Surroundings {
    /// The entry is a digest or a glob.
    Several,
    Missing,
    There(Metadata),
}

fn look(entry: &str) -> Surroundings {
    if !entry.starts_with('/') || entry.contains('*') {
        return Surroundings::Several;
    }
    fs::metadata(entry).map_or(Surroundings::Missing, Surroundings::There)
}

/// Whether an entry is a glob that no file matches here, as far as that can be seen with little effort.
fn matches_nothing(entry: &str) -> bool {
    let components: Vec<&str> = entry.split('/').skip(1).collect();
    entry.starts_with('/') && entry.contains('*') && !leads_somewhere(Path::new("/"), &components, &mut { LOOKED_AT })
}

fn leads_somewhere(directory: &Path, components: &[&str], left: &mut usize) -> bool {
    let Some((first, rest)) = components.split_first() else { return directory.exists() };
    if !first.contains('*') {
        return leads_somewhere(&directory.join(first), rest, left);
    }
    let Ok(entries) = fs::read_dir(directory) else { return false };
    if first.contains("**") {
        return true; // what lies below is too much to look at
    }
    for entry in entries.flatten() {
        *left = left.saturating_sub(1);
        let name = entry.file_name();
        if *left == 0 || starred(first, &name.to_string_lossy()) && leads_somewhere(&entry.path(), rest, left) {
            return true;
        }
    }
    false
}

/// Whether a name matches a component of a glob.
fn starred(component: &str, name: &str) -> bool {
    let mut pieces = component.split('*');
    let first = pieces.next().unwrap_or_default();
    let last = pieces.next_back().unwrap_or_default();
    let Some(rest) = name.strip_prefix(first) else { return false };
    let rest = pieces.try_fold(rest, |rest, piece| rest.find(piece).map(|at| &rest[at + piece.len()..]));
    rest.is_some_and(|rest| rest.ends_with(last))
}

/// What about an allowed executable may surprise.
fn surprises(entry: &str) -> Vec<String> {
    let metadata = match look(entry) {
        Surroundings::Several if matches_nothing(entry) => {
            return vec![format!("{entry} matches nothing; whoever makes something that it matches may run it")];
        }
        Surroundings::Several => return Vec::new(),
        Surroundings::Missing => return vec![format!("there is no {entry}; whoever makes it may run it")],
        Surroundings::There(metadata) => metadata,
    };
    let mut warnings = Vec::new();
    if metadata.is_dir() {
        if !entry.ends_with('/') {
            warnings
                .push(format!("{entry} is a directory, so this allows nothing; with a / at the end, what is in it"));
        } else if metadata.permissions().mode() & 0o002 != 0 {
            warnings.push(format!("everybody can put a program into {entry}"));
        }
        return warnings;
    }
    let real = fs::canonicalize(entry).unwrap_or_else(|_| entry.into());
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let (asked, real_name) = (name(Path::new(entry)), name(&real));
    if asked != real_name {
        warnings.push(format!(
            "{entry} leads to {}, and it is that file which is allowed, by whatever name",
            real.display()
        ));
    }
    if metadata.permissions().mode() & 0o111 == 0 {
        warnings.push(format!("{entry} is not executable"));
    }
    if others_can_write(&real) {
        warnings.push(format!("everybody can write {}", real.display()));
    }
    if let Some(what) = runs_anything(&real_name) {
        warnings.push(format!("{entry} is {what}"));
    }
    warnings
}

/// Programs that do what a file or an argument tells them: what is allowed is more than the name says.
fn runs_anything(name: &str) -> Option<&'static str> {
    const SHELLS: &[&str] = &["sh", "bash", "dash", "zsh", "ksh", "ash", "fish", "busybox", "toybox"];
    const LANGUAGES: &[&str] =
        &["python", "perl", "ruby", "node", "php", "lua", "luajit", "tclsh", "java", "gawk", "mawk", "awk", "gdb"];
    // `python3.11` is python.
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.');
    if name.starts_with("ld-") || name.starts_with("ld.so") {
        Some("a dynamic loader, which runs any program that it is given")
    } else if SHELLS.contains(&name) {
        Some("a shell: it runs any script, if not every program")
    } else if LANGUAGES.contains(&stem) {
        Some("an interpreter: it runs any script")
    } else {
        None
    }
}

fn network(report: &mut Report<'_>, place: &str, section: &Value) {
    for (key, does, here, peers) in [("outbound", "reaches", "to", None), ("inbound", "serves", "on", Some("from"))] {
        let rules = section.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        if rules.is_empty() {
            report.line(&format!("  {does}: nothing"));
        }
        for (index, rule) in rules.iter().enumerate() {
            report.line(&format!("  {does}: {}", rule_in_words(rule, here, peers)));
            for list in [here, "ports", "from"] {
                if rule.get(list).is_some_and(|list| list.as_array().is_some_and(Vec::is_empty)) {
                    let warning = "an empty list matches nothing, so this rule allows nothing";
                    report.warn(&format!("{place}/{key}/{index}/{list}"), warning);
                }
            }
            if rule.get("protocol").is_some_and(|protocol| protocol == "icmp") && rule.get("ports").is_some() {
                let warning = "icmp has no ports, so this allows only what happens to name one of these";
                report.warn(&format!("{place}/{key}/{index}/ports"), warning);
            }
        }
    }
    report.line(&format!("  other families: {}", section.get("families").map_or("none".to_owned(), listed)));
    let spared = EXCEPTIONS.iter().filter(|(key, _)| section.get(key) != Some(&Value::Bool(false)));
    let spared: Vec<&str> = spared.map(|(_, what)| *what).collect();
    report.line(&format!(
        "  without a rule: {}",
        if spared.is_empty() { "nothing".to_owned() } else { spared.join(", ") }
    ));
}

/// What is allowed unless the section says otherwise.
const EXCEPTIONS: [(&str, &str); 5] = [
    ("netlink_route", "asking for interfaces and routes"),
    ("unix_sockets", "making AF_UNIX sockets and pairs of them"),
    ("unix_autobind", "AF_UNIX names of the kernel's choice"),
    ("bind_port_0", "binding port 0"),
    ("dissolve", "dissolving associations"),
];

fn rule_in_words(rule: &Value, here: &str, peers: Option<&str>) -> String {
    if let Some(path) = rule.get("unix").and_then(Value::as_str) {
        return format!("AF_UNIX, {path}");
    }
    if let Some(name) = rule.get("unix_abstract").and_then(Value::as_str) {
        return format!("AF_UNIX, @{name}");
    }
    let addresses = rule.get(here).map_or("any address".to_owned(), listed);
    let ports = rule.get("ports").map_or("any port".to_owned(), |ports| format!("port {}", listed(ports)));
    let from = rule.get("from").map(listed);
    let protocol = match (rule.get("protocol").and_then(Value::as_str), &from) {
        (Some(protocol), _) => protocol,
        (None, None) => "tcp and udp",
        (None, Some(_)) => "tcp",
    };
    let from = peers.map(|_| format!(", from {}", from.unwrap_or_else(|| "anybody".to_owned()))).unwrap_or_default();
    format!("{addresses}, {ports}, {protocol}{from}")
}

/// One value or a list of them, in words.
fn listed(value: &Value) -> String {
    let one = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    match value {
        Value::Array(values) if values.is_empty() => "none".to_owned(),
        Value::Array(values) => values.iter().map(one).collect::<Vec<_>>().join(" or "),
        value => one(value),
    }
}

fn users(report: &mut Report<'_>, place: &str, section: &Value) {
    let (users, groups) = (section.get("uids"), section.get("gids"));
    let who = |ids: Option<&Value>| ids.map_or("any".to_owned(), listed);
    report.line(&format!("  users: {}; groups: {}", who(users), who(groups)));
    if users.is_none() && groups.is_none() {
        report.warn(place, "this governs nothing: it has neither \"uids\" nor \"gids\", so processes may be anybody");
    }
    for (key, ids) in [("uids", users), ("gids", groups)] {
        if ids.and_then(Value::as_array).is_some_and(Vec::is_empty) {
            report.warn(&format!("{place}/{key}"), "an empty list allows nobody, so nothing runs");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_in_a_component_is_any_part_of_a_name() {
        for (component, name, expected) in
            [("*", "a", true), ("a*c", "abc", true), ("a*c", "ac", true), ("a*a", "a", false), ("*b*", "abc", true)]
        {
            assert_eq!(starred(component, name), expected, "{component} {name}");
        }
    }

    #[test]
    fn a_glob_that_matches_nothing_is_found_out() {
        assert!(!matches_nothing("/usr/*/env") && !matches_nothing("/usr/**") && !matches_nothing("/usr/bin/en*"));
        assert!(
            matches_nothing("/usr/*/nosuch-program") && matches_nothing("/nosuch/**") && matches_nothing("/nosuch*")
        );
        assert!(!matches_nothing("/nosuch"));
    }
}
