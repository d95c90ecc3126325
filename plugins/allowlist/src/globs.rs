//! Many globs at once.

use std::collections::HashMap;

use callgate_sdk::Glob;

/// How many bytes a piece has.
const PIECE: usize = 4;
/// So many are tried one after the other.
const FEW: usize = 4;

/// A set of globs, compiled: a text is compared only with those that have a certain piece of it.
#[derive(Debug, Default)]
pub(crate) struct Globs {
    /// By a piece that every text which one of them matches has. Sorted.
    by_piece: Vec<([u8; PIECE], Vec<Glob>)>,
    /// Those that have no such piece, or are few.
    others: Vec<Glob>,
}

impl Globs {
    /// Compiles them.
    pub(crate) fn new(globs: Vec<Glob>) -> Self {
        if globs.len() <= FEW {
            return Self { by_piece: Vec::new(), others: globs };
        }
        let pieces: Vec<Vec<[u8; PIECE]>> = globs.iter().map(pieces).collect();
        let mut common: HashMap<[u8; PIECE], usize> = HashMap::new();
        for piece in pieces.iter().flatten() {
            *common.entry(*piece).or_default() += 1;
        }
        let mut by_piece: HashMap<[u8; PIECE], Vec<Glob>> = HashMap::new();
        let mut others = Vec::new();
        for (glob, pieces) in globs.into_iter().zip(&pieces) {
            match pieces.iter().min_by_key(|piece| common.get(*piece)) {
                Some(rarest) => by_piece.entry(*rarest).or_default().push(glob),
                None => others.push(glob),
            }
        }
        let mut by_piece: Vec<_> = by_piece.into_iter().collect();
        by_piece.sort_unstable_by_key(|(piece, _)| *piece);
        Self { by_piece, others }
    }

    /// Whether one of them matches.
    pub(crate) fn has(&self, text: &str) -> bool {
        let matches = |glob: &Glob| glob.matches(text);
        self.others.iter().any(matches)
            || !self.by_piece.is_empty()
                && text.as_bytes().windows(PIECE).any(|piece| {
                    let found = self.by_piece.binary_search_by(|(known, _)| known.as_slice().cmp(piece));
                    found.is_ok_and(|at| self.by_piece[at].1.iter().any(matches))
                })
    }
}

/// Pieces that every text has which it matches.
fn pieces(glob: &Glob) -> Vec<[u8; PIECE]> {
    glob.texts().flat_map(|text| text.windows(PIECE)).filter_map(|piece| piece.try_into().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use callgate_sdk::testing::strategies;

    #[test]
    fn a_text_is_compared_with_few_of_many() {
        let globs = Globs::new((0..100).map(|n| Glob::new(&format!("/opt/*/bin/tool-{n}-*"))).collect());
        assert!(globs.others.is_empty());
        assert!(globs.by_piece.iter().all(|(_, globs)| globs.len() < 20), "{:?}", globs.by_piece);
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(4096))]

        #[test]
        fn together_they_match_what_one_of_them_matches(
            globs in proptest::collection::vec(strategies::glob(), 0..12),
            text in "(a|b|/|\\*|abc|tool|!){0,8}",
        ) {
            let globs: Vec<Glob> = globs.iter().map(|glob| Glob::new(glob)).collect();
            let expected = globs.iter().any(|glob| glob.matches(&text));
            proptest::prop_assert_eq!(Globs::new(globs).has(&text), expected);
        }

    }
}
