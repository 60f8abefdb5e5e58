//! The catalogue of known bugs: which there are, which litmus tests show each, and which are open.
//!
//! A litmus test with a line `bug B07 TITLE` is a test of entry B07; its comment is the entry's text. A letter behind the
//! number names a variant: `B07b` belongs to B07 as well. Entries that no litmus test shows are listed in `open.txt`,
//! with the reason; whoever adds a test takes its entry out there.
//!
//! Numbers with a B are those of real bugs, with a C of candidates that nobody has reported, as far as is known, with an M of lazy
//! MMU mode's, with an N of MMU notifiers', with a P of the defects of their first proposal. B01 to B36, B38 to B43, C1 to C3, M01 to
//! M27, N01 to N27 and P1 to P7 must all be there. The others (C4, MB1, S01, ...) were found, or thought of, here.

use crate::bad_input::BadInput;
use crate::suite::{self, Test};

/// The entries without a test: `ID TITLE`, and the reason on indented lines below.
const OPEN: &str = include_str!("open.txt");

/// An entry.
#[derive(Clone)]
pub(crate) struct Entry {
    /// Its number, B07.
    pub(crate) id: String,
    pub(crate) title: String,
    /// The tests that show it; none if it is open.
    pub(crate) tests: Vec<Test>,
    /// Why it is open.
    pub(crate) open: Option<String>,
}

/// All entries, in order.
pub(crate) fn all() -> Result<Vec<Entry>, BadInput> {
    let mut entries = open();
    for test in suite::load(&[])?.into_iter().filter(|test| test.litmus.bug().is_some()) {
        add(&mut entries, test);
    }
    entries.sort_by_cached_key(|entry| order(&entry.id));
    for entry in &mut entries {
        entry.tests.sort_by_cached_key(|test| number(test).to_owned());
        if let Some(first) = entry.tests.first() {
            entry.title = title(first).to_owned();
        }
    }
    Ok(entries)
}

/// The number that a test says it shows.
pub(crate) fn number(test: &Test) -> &str {
    test.litmus.bug().map_or("", |(number, _)| number)
}

/// The title that a test gives it.
pub(crate) fn title(test: &Test) -> &str {
    test.litmus.bug().map_or("", |(_, title)| title)
}

/// The entry that a number belongs to: without the letter of a variant.
fn entry_of(number: &str) -> &str {
    number.trim_end_matches(|letter: char| letter.is_ascii_lowercase())
}

fn add(entries: &mut Vec<Entry>, test: Test) {
    let id = entry_of(number(&test));
    match entries.iter_mut().find(|entry| entry.id == id) {
        Some(entry) => entry.tests.push(test),
        None => {
            entries.push(Entry { id: id.to_owned(), title: title(&test).to_owned(), tests: vec![test], open: None })
        }
    }
}

/// By letter, then by number.
fn order(id: &str) -> (String, u32) {
    let digits = id.find(|letter: char| letter.is_ascii_digit()).unwrap_or(id.len());
    (id[..digits].to_owned(), id[digits..].parse().unwrap_or(u32::MAX))
}

/// What `open.txt` says.
fn open() -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    for line in OPEN.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
        match (line.strip_prefix("    "), entries.last_mut()) {
            (Some(reason), Some(Entry { open: Some(so_far), .. })) => {
                so_far.push_str(if so_far.is_empty() { "" } else { "\n" });
                so_far.push_str(reason);
            }
            _ => {
                let (id, title) = line.split_once(' ').unwrap_or((line, ""));
                let (id, title) = (id.to_owned(), title.to_owned());
                entries.push(Entry { id, title, tests: Vec::new(), open: Some(String::new()) });
            }
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_numbered_entry_has_a_test_or_a_reason_and_none_both() {
        let entries = all().unwrap();
        for entry in &entries {
            let Entry { id, title, tests, open } = entry;
            assert_eq!(open.is_none(), !tests.is_empty(), "{id}: a test, or a reason in open.txt, and not both");
            assert_ne!(open.as_deref(), Some(""), "{id}: open for no reason");
            assert!(!title.is_empty(), "{id} has no title");
        }
        let ids: BTreeSet<&str> = entries.iter().map(|entry| &*entry.id).collect();
        assert_eq!(ids.len(), entries.len(), "each entry once");
        let real = (1..=36).chain(38..=43).map(|number| format!("B{number:02}"));
        let candidates = (1..=3).map(|number| format!("C{number}"));
        let of_lazy_mmu = (1..=27).map(|number| format!("M{number:02}"));
        let of_notifiers = (1..=27).map(|number| format!("N{number:02}"));
        let of_their_proposal = (1..=7).map(|number| format!("P{number}"));
        let numbered: Vec<String> =
            real.chain(candidates).chain(of_lazy_mmu).chain(of_notifiers).chain(of_their_proposal).collect();
        assert_eq!(numbered.len(), 45 + 27 + 27 + 7);
        for id in &numbered {
            assert!(ids.contains(&**id), "{id} is not in the catalogue");
        }
    }

    #[test]
    fn variants_belong_to_their_entry() {
        let entries = all().unwrap();
        let b01 = entries.iter().find(|entry| entry.id == "B01").unwrap();
        let numbers: Vec<&str> = b01.tests.iter().map(number).collect();
        assert_eq!(numbers, ["B01", "B01b", "B01c"]);
        assert_eq!(b01.title, title(&b01.tests[0]));
    }

    #[test]
    fn the_order_is_that_of_numbers() {
        assert!(order("B9") < order("B10") && order("B43") < order("C1") && order("C3") < order("S01"));
    }
}
