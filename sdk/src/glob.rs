//! Globs, as the allowlist has them. Depends on nothing.

/// A glob, compiled: for paths and names in a configuration. `*` is any number of characters but `/`, `**` is any number of any;
/// a component that is `**` alone may also be none at all, so that `/a/**/b` matches `/a/b`. Nothing else is special: `?`, `[`,
/// `{` and `\\` are themselves.
///
/// ```
/// use callgate_sdk::Glob;
///
/// let glob = Glob::new("/opt/*/bin/**");
/// assert!(glob.matches("/opt/app/bin/tools/x"));
/// assert!(!glob.matches("/opt/app/lib/bin/x"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    /// This, to the byte.
    Text(Vec<u8>),
    /// `*`: anything without a slash.
    Star,
    /// `**`: anything.
    Any,
    /// `**/` at the start of a component: nothing, or anything that ends with a slash.
    Directories,
}

impl Glob {
    /// Compiles a glob.
    pub fn new(written: &str) -> Self {
        Self::below("", written)
    }

    /// What begins with `literal`, in which nothing is special, and goes on as `written` says.
    pub fn below(literal: &str, written: &str) -> Self {
        let mut parts = vec![Part::Text(literal.as_bytes().to_vec())];
        let mut rest = written.bytes().peekable();
        let mut last = literal.bytes().last();
        while let Some(byte) = rest.next() {
            if byte != b'*' {
                match parts.last_mut() {
                    Some(Part::Text(text)) => text.push(byte),
                    _ => parts.push(Part::Text(vec![byte])),
                }
                last = Some(byte);
                continue;
            }
            let crosses = rest.peek() == Some(&b'*');
            while rest.next_if_eq(&b'*').is_some() {}
            let begins = last.is_none_or(|last| last == b'/');
            parts.push(match crosses {
                false => Part::Star,
                true if begins && rest.next_if_eq(&b'/').is_some() => Part::Directories,
                true => Part::Any,
            });
            last = match parts.last() {
                Some(Part::Directories) => Some(b'/'),
                _ => Some(b'*'),
            };
        }
        Self(parts)
    }

    /// Whether it matches the whole of a text.
    ///
    /// Each wildcard is given as little as possible first. If what follows does not match, only the last one has to be given
    /// more: an earlier one would only have left less to it. Save that [`Part::Star`] ends at a slash, and then the last
    /// wildcard that may cross slashes is the one.
    pub fn matches(&self, text: &str) -> bool {
        let text = text.as_bytes();
        let (mut part, mut at) = (0, 0);
        // Where to go on: the part after the wildcard, and how far that one reaches.
        let mut star: Option<(usize, usize)> = None;
        let mut crossing: Option<(usize, usize, bool)> = None;
        loop {
            let matched = match self.0.get(part) {
                None if at == text.len() => return true,
                None => false,
                Some(Part::Text(literal)) => {
                    let same = text[at..].starts_with(literal);
                    if same {
                        at += literal.len();
                    }
                    same
                }
                Some(Part::Star) => {
                    star = Some((part + 1, at));
                    true
                }
                Some(wild @ (Part::Any | Part::Directories)) => {
                    (star, crossing) = (None, Some((part + 1, at, *wild == Part::Directories)));
                    true
                }
            };
            if matched {
                part += 1;
                continue;
            }
            if let Some((next, reached)) = star
                && text.get(reached).is_some_and(|byte| *byte != b'/')
            {
                (part, at, star) = (next, reached + 1, Some((next, reached + 1)));
                continue;
            }
            let Some((next, reached, whole)) = crossing else { return false };
            let rest = text.get(reached..).unwrap_or_default();
            let more = if whole { rest.iter().position(|byte| *byte == b'/').map(|slash| slash + 1) } else { Some(1) };
            let Some(more) = more.filter(|more| *more <= rest.len()) else { return false };
            (part, at, star, crossing) = (next, reached + more, None, Some((next, reached + more, whole)));
        }
    }

    /// What every text that it matches has in it, in this order.
    pub fn texts(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().filter_map(|part| if let Part::Text(text) = part { Some(text.as_slice()) } else { None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_star_stays_in_its_directory_and_two_do_not() {
        for (glob, yes, no) in [
            ("/srv/*/run", &["/srv/a/run", "/srv//run"][..], &["/srv/run", "/srv/a/b/run", "/srv/a/run2"][..]),
            ("/srv/**/run", &["/srv/run", "/srv/a/run", "/srv/a/b/run"], &["/srv/arun", "/srvrun", "/srv/a/run/x"]),
            ("/srv/**", &["/srv/a", "/srv/a/b"], &["/srv", "/srva"]),
            ("/srv/**run", &["/srv/run", "/srv/a/b/run", "/srv/a/prerun"], &["/srv/a/runs"]),
            ("/a*b**c*/d", &["/abc/d", "/axb/y/cz/d"], &["/a/bc/d", "/abc/x/d"]),
            ("/opt/tool-?[1]{a,b}\\*!", &["/opt/tool-?[1]{a,b}\\x!"], &["/opt/tool-x1a*!", "/opt/tool-?[1]{a,b}*!"]),
            ("**/x", &["x", "a/x", "/x"], &["ax"]),
            ("!a", &["!a"], &["b", "a"]),
        ] {
            for text in yes {
                assert!(Glob::new(glob).matches(text), "{glob} {text}");
            }
            for text in no {
                assert!(!Glob::new(glob).matches(text), "{glob} {text}");
            }
        }
        assert!(Glob::below("/a*", "/*").matches("/a*/x") && !Glob::below("/a*", "/*").matches("/ab/x"));
    }

    /// The same by trying everything.
    #[cfg(feature = "proptest")]
    fn slowly(glob: &[u8], text: &[u8], begins: bool) -> bool {
        let Some(first) = glob.first() else { return text.is_empty() };
        if *first != b'*' {
            return text.first() == Some(first) && slowly(&glob[1..], &text[1..], *first == b'/');
        }
        let stars = glob.iter().take_while(|byte| **byte == b'*').count();
        let rest = &glob[stars..];
        if stars > 1 && begins && rest.first() == Some(&b'/') {
            let ends = (1..=text.len()).filter(|end| text[end - 1] == b'/');
            return std::iter::once(0).chain(ends).any(|end| slowly(&rest[1..], &text[end..], true));
        }
        let most = if stars > 1 { text.len() } else { text.iter().take_while(|byte| **byte != b'/').count() };
        (0..=most).any(|end| slowly(rest, &text[end..], false))
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(4096))]

        #[test]
        #[cfg(feature = "proptest")]
        fn a_glob_matches_what_its_wildcards_can_be_replaced_to(
            glob in crate::testing::strategies::glob(),
            text in "(a|b|/|\\*|abc|tool|!|\\?|\\[ab\\]|\\\\){0,8}",
        ) {
            let expected = slowly(glob.as_bytes(), text.as_bytes(), true);
            proptest::prop_assert_eq!(Glob::new(&glob).matches(&text), expected);
        }

        #[test]
        fn without_a_star_it_matches_itself_and_nothing_else(one in "[a-c/?\\[\\]{}!,\\\\-]{0,6}", other in "[a-c/?\\[\\]{}!,\\\\*-]{0,6}") {
            proptest::prop_assert!(Glob::new(&one).matches(&one));
            proptest::prop_assert_eq!(Glob::new(&one).matches(&other), one == other);
        }
    }
}
