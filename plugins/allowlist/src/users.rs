//! Which users and groups processes may be.

use callgate_sdk::{ConfigError, Credentials, Subject, Verdict};
use serde::Deserialize;

/// Users and groups by their numbers.
#[derive(Debug, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// User ids: numbers, or ranges such as `"1000-1999"`. Absent: any.
    pub uids: Option<Vec<Id>>,
    /// Group ids, likewise.
    pub gids: Option<Vec<Id>>,
}

/// One id, or a range of them.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(untagged)]
pub enum Id {
    /// One.
    One(u32),
    /// `"first-last"`.
    Range(String),
}

/// The lists, as ranges.
#[derive(Debug)]
pub(crate) struct Users {
    uids: Option<Vec<(u32, u32)>>,
    gids: Option<Vec<(u32, u32)>>,
}

impl Users {
    /// Reads the ranges.
    ///
    /// # Errors
    /// A range that is none.
    pub(crate) fn new(config: Config) -> Result<Self, ConfigError> {
        let ranges = |ids: Option<Vec<Id>>, key: &str| {
            ids.map(|ids| {
                let ids = ids.into_iter().enumerate();
                ids.map(|(index, id)| range(&id, &format!("/users/{key}/{index}"))).collect::<Result<Vec<_>, _>>()
            })
            .transpose()
        };
        Ok(Self { uids: ranges(config.uids, "uids")?, gids: ranges(config.gids, "gids")? })
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
        let find = |allowed: &Option<Vec<(u32, u32)>>, ids: &[u32]| {
            let allowed = allowed.as_ref()?;
            ids.iter().find(|id| !allowed.iter().any(|(low, high)| (low..=high).contains(id))).copied()
        };
        let (kind, key, id) = find(&self.uids, uids)
            .map(|id| ("user", "uids", id))
            .or_else(|| find(&self.gids, gids).map(|id| ("group", "gids", id)))?;
        let denied = Verdict::deny(
            format!("users.{kind}-not-listed"),
            format!("a process may not {what} {kind} {id}, which is not in users.{key}"),
        );
        Some(denied.hint(format!("add {id} to users.{key}")))
    }
}

fn range(id: &Id, pointer: &str) -> Result<(u32, u32), ConfigError> {
    match id {
        Id::One(id) => Ok((*id, *id)),
        Id::Range(text) => text
            .split_once('-')
            .and_then(|(low, high)| Some((low.trim().parse().ok()?, high.trim().parse().ok()?)))
            .filter(|(low, high)| low <= high)
            .ok_or_else(|| ConfigError::at(pointer, format!("{text:?} is no range of ids such as \"1000-1999\""))),
    }
}
