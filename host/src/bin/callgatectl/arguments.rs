//! Arguments of subcommands, which all take the same form: words, options with a value, and flags.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{self, Write};
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result};
use lexopt::{Arg, Parser};

use callgate::ctl::Checked;

/// The arguments make no sense.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// A subcommand, and what it takes.
pub(crate) struct Form {
    /// Its name: `plugin run`.
    pub(crate) name: &'static str,
    /// One line.
    pub(crate) summary: &'static str,
    /// What follows its name, and what that means.
    pub(crate) usage: &'static str,
    pub(crate) help: &'static str,
    /// How many words it takes.
    pub(crate) words: std::ops::RangeInclusive<usize>,
    /// Options with a value.
    pub(crate) options: &'static [&'static str],
    /// Options without.
    pub(crate) flags: &'static [&'static str],
    pub(crate) run: fn(&Given) -> Result<Checked>,
}

/// What was given.
pub(crate) struct Given {
    words: Vec<OsString>,
    options: Vec<(&'static str, OsString)>,
    flags: Vec<&'static str>,
}

impl Form {
    /// Parses the arguments and does the work, or says what it would be.
    pub(crate) fn run(&self, arguments: Vec<OsString>) -> Result<Checked> {
        let mut given = Given { words: Vec::new(), options: Vec::new(), flags: Vec::new() };
        let mut parser = Parser::from_args(arguments);
        while let Some(argument) = parser.next().map_err(|error| self.wrong(&error.to_string()))? {
            let long = match argument {
                Arg::Short('h') | Arg::Long("help") => return say(&self.text()),
                Arg::Short('o') => "output",
                Arg::Short(short) => return Err(self.wrong(&format!("there is no option -{short}"))),
                Arg::Long(long) => long,
                Arg::Value(word) => {
                    given.words.push(word);
                    continue;
                }
            };
            if let Some(flag) = self.flags.iter().find(|flag| **flag == long) {
                given.flags.push(flag);
            } else if let Some(option) = self.options.iter().find(|option| **option == long) {
                if given.options.iter().any(|(name, _)| name == option) {
                    return Err(self.wrong(&format!("--{option} is there twice")));
                }
                let value = parser.value().map_err(|error| self.wrong(&error.to_string()))?;
                given.options.push((option, value));
            } else {
                return Err(self.wrong(&format!("there is no option --{long}")));
            }
        }
        if !self.words.contains(&given.words.len()) {
            return Err(self.wrong(&format!("it takes {}", self.usage)));
        }
        (self.run)(&given)
    }

    fn wrong(&self, message: &str) -> anyhow::Error {
        Usage(format!("{}: {message}; see callgatectl {0} --help", self.name)).into()
    }

    fn text(&self) -> String {
        format!("{}\n\nUsage: callgatectl {} {}\n\n{}", self.summary, self.name, self.usage, self.help)
    }
}

impl Given {
    /// The word at this position, which the form says is there.
    pub(crate) fn word(&self, position: usize) -> &OsStr {
        self.optional_word(position).unwrap_or_default()
    }

    pub(crate) fn optional_word(&self, position: usize) -> Option<&OsStr> {
        self.words.get(position).map(OsString::as_os_str)
    }

    pub(crate) fn path(&self, position: usize) -> &Path {
        Path::new(self.word(position))
    }

    pub(crate) fn option(&self, name: &str) -> Option<&OsStr> {
        self.options.iter().find(|(option, _)| *option == name).map(|(_, value)| value.as_os_str())
    }

    pub(crate) fn option_path(&self, name: &str) -> Option<&Path> {
        self.option(name).map(Path::new)
    }

    /// An option whose value is text.
    pub(crate) fn text(&self, name: &str) -> Result<Option<&str>> {
        let text = |value: &OsStr| format!("--{name} is {value:?}, which is not UTF-8");
        self.option(name).map(|value| value.to_str().ok_or_else(|| Usage(text(value)).into())).transpose()
    }

    /// An option whose value is a number in a range.
    pub(crate) fn number<T: FromStr + PartialOrd + fmt::Display>(
        &self,
        name: &str,
        range: std::ops::RangeInclusive<T>,
    ) -> Result<Option<T>> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        match text.parse().ok().filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => {
                let (low, high) = (range.start(), range.end());
                Err(Usage(format!("--{name} is {text:?}; it takes {low} to {high}")).into())
            }
        }
    }

    pub(crate) fn flag(&self, name: &str) -> bool {
        self.flags.contains(&name)
    }
}

/// Prints to standard output.
pub(crate) fn say(text: &str) -> Result<Checked> {
    io::stdout().write_all(text.as_bytes()).context("cannot write")?;
    Ok(Checked::Passed)
}
