//! What the README shows of the command is what the command prints.

use std::fs;
use std::path::Path;
use std::process::Command;

use lazytlb_sched_model::{Rules, Strategy};
use snapbox::cmd::cargo_bin;

/// The README's blocks that begin with a `litmus` command: its arguments, and the lines below it.
fn shown(readme: &str) -> Vec<(Vec<&str>, Vec<&str>)> {
    let mut blocks = Vec::new();
    let mut lines = readme.lines();
    while let Some(line) = lines.next() {
        if let Some(arguments) = line.strip_prefix("$ cargo run --release -- litmus ") {
            let output = lines.by_ref().take_while(|line| *line != "```").collect();
            blocks.push((arguments.split(' ').collect(), output));
        }
    }
    blocks
}

/// A line without what is another on each machine, the width of columns and seconds, and without what changes with every
/// line of the library: places in files, and the numbers that tie a schedule to its program.
fn stable(line: &str) -> String {
    let is_seconds = |word: &str| word.split_once('.').is_some_and(|(_, digits)| digits.len() == 4);
    let is_hash = |word: &str| word.len() == 16 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let without_line = |word: &str| word.split_once(".rs:").map_or(word.to_owned(), |(file, _)| format!("{file}.rs"));
    let words = line.split_whitespace().filter(|word| !is_seconds(word) && !is_hash(word)).map(without_line);
    words.collect::<Vec<_>>().join(" ")
}

#[test]
fn the_readme_shows_what_litmus_prints() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    let blocks = shown(&readme);
    assert_eq!(blocks.len(), 3);
    for (arguments, lines) in blocks {
        let output = Command::new(cargo_bin!("lazytlb"))
            .arg("litmus")
            .args(&arguments)
            .current_dir(&root)
            .env("NO_COLOR", "1")
            .output()
            .unwrap();
        let printed: Vec<String> = String::from_utf8(output.stdout).unwrap().lines().map(stable).collect();
        let mut rest = &printed[..];
        for line in lines.iter().filter(|line| **line != "[...]").map(|line| stable(line)) {
            let at = rest.iter().position(|other| *other == line);
            rest = &rest[at.unwrap_or_else(|| panic!("{arguments:?} does not print, or not there: {line}")) + 1..];
        }
    }
}

/// The guide's tables are those that the command counts now.
#[test]
fn the_guide_shows_what_costs_counts() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let guide = fs::read_to_string(root.join("docs/STRATEGIES.md")).unwrap();
    let tables: [(&str, &[&str]); 2] = [("costs", &[]), ("flush", &["--machine", "ipi-unlazy", "--path", "P15"])];
    for (name, arguments) in tables {
        let (_, shown) = guide.split_once(&format!("<!-- {name} -->\n")).unwrap();
        let (shown, _) = shown.split_once(&format!("<!-- /{name} -->")).unwrap();
        let mut command = Command::new(cargo_bin!("lazytlb"));
        let output = command.arg("costs").args(arguments).env("NO_COLOR", "1").output().unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        let differs = shown.trim().lines().zip(printed.trim().lines()).find(|(shown, printed)| shown != printed);
        assert!(
            shown.trim() == printed.trim(),
            "`lazytlb costs {arguments:?}` prints what belongs into docs/STRATEGIES.md; the first line: {differs:?}"
        );
    }
}

/// The tables of a text whose header has a column, each as the first words of its rows.
fn rows_of_tables<'a>(text: &'a str, column: &str) -> Vec<Vec<&'a str>> {
    let is_header = |line: &str| line.starts_with(" strategy ") && line.split_whitespace().any(|word| word == column);
    let lines: Vec<&str> = text.lines().collect();
    let headers = lines.iter().enumerate().filter(|(_, line)| is_header(line));
    let rows = headers.map(|(header, _)| lines[header + 1..].iter().take_while(|line| line.starts_with(' ')));
    rows.map(|rows| rows.filter_map(|row| row.split_whitespace().next()).collect()).collect()
}

/// That a table is the one that `compare` prints is checked where that has been run (`.ci/run`): it takes minutes. That none lacks
/// a strategy, or a machine, is seen at once.
#[test]
fn no_strategy_is_missing_from_a_table() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    let guide = fs::read_to_string(root.join("docs/STRATEGIES.md")).unwrap();
    let all: Vec<&str> = Strategy::all().map(Strategy::name).collect();
    let machines = Rules::ALL.iter().map(|rules| (&guide, rules.name(), 1));
    let of_readme = [("ipi-flush", 1), ("transfers", 2), ("user-user", 1)];
    for (text, column, tables) in machines.chain(of_readme.map(|(column, tables)| (&readme, column, tables))) {
        let found = rows_of_tables(text, column);
        assert_eq!(found.len(), tables, "tables with a column {column}");
        for rows in found {
            // There is nothing to time of a strategy that does nothing.
            let expected = all.iter().filter(|&&name| column != "user-user" || name != "unprotected");
            let missing: Vec<&&str> = expected.filter(|name| !rows.contains(name)).collect();
            assert!(missing.is_empty(), "{missing:?} are not in the table with a column {column}");
        }
    }
}
