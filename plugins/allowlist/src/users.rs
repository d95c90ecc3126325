//! Which users and groups processes may be.

use callgate_sdk::{Credentials, Subject, Verdict, present};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::forms::Span;

/// Who processes may be, by number.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "Users")]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// User ids: numbers, or ranges such as `"1000-1999"`. Absent: any.
    #[serde(default, deserialize_with = "present")]
    uids: Option<Vec<Span<u32>>>,
    /// Group ids, likewise.
    #[serde(default, deserialize_with = "present")]
    gids: Option<Vec<Span<u32>>>,
}

/// The section, which needs no compiling.
#[derive(Debug)]
pub(crate) struct Users(Config);

impl Users {
    /// Takes the section.
    pub(crate) fn new(config: Config) -> Self {
        Self(config)
    }

    /// The denial of a program that would run as somebody who may not.
    pub(crate) fn running_as(&self, subject: &Subject) -> Option<Verdict> {
        self.check("run as", &[subject.uid], &[subject.gid])
    }

    /// Whether a process may become this.
    pub(crate) fn change(&self, change: &Credentials) -> Verdict {
        let groups: Vec<u32> = change.gids.iter().chain(change.groups.iter().flatten()).copied().collect();
        self.check("become", &change.uids, &groups).unwrap_or_else(|| Verdict::allow("users.listed"))
    }

    fn check(&self, what: &str, uids: &[u32], gids: &[u32]) -> Option<Verdict> {
        let find = |allowed: &Option<Vec<Span<u32>>>, ids: &[u32]| {
            let allowed = allowed.as_ref()?;
            ids.iter().copied().find(|id| !allowed.iter().any(|span| span.contains(*id)))
        };
        let (kind, key, id) = find(&self.0.uids, uids)
            .map(|id| ("user", "uids", id))
            .or_else(|| find(&self.0.gids, gids).map(|id| ("group", "gids", id)))?;
        let denied = Verdict::deny(
            format!("users.{kind}-not-listed"),
            format!("a process may not {what} {kind} {id}, which is not in users.{key}"),
        );
        Some(denied.hint(format!("add {id} to users.{key}")))
    }
}
