//! All bundled litmus tests of lazy MMU mode: each finds what it says.

use core::time::Duration;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use lazytlb_machine::{Limits, Reduction, Search};
use lazytlb_mmu_model::{Api, Arch, Litmus, Model, Mutant, Rule};

/// The bundled tests of this kind.
fn bundled() -> Vec<Litmus> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../litmus/lazy-mmu");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    let texts = files.iter().map(|file| (file, fs::read_to_string(file).unwrap()));
    let of_this_kind = texts.filter(|(_, text)| Litmus::is_one(text));
    of_this_kind
        .map(|(file, text)| {
            Litmus::parse(&text).unwrap_or_else(|error| panic!("{}", error.in_file(&file.to_string_lossy())))
        })
        .collect()
}

/// All that is found, over all interleavings.
fn found(litmus: &Litmus, api: Api, arch: Arch) -> BTreeSet<&'static str> {
    let limits = Limits { executions: 10_000_000, time: Duration::from_secs(120), stop_at_first: false };
    let model = Model::new(&litmus.program, &litmus.setting(api, arch));
    let exploration = model.explore(Search::Exhaustive(Reduction::Full), limits, |_| {});
    assert!(exploration.complete, "{} under {api} on {arch}", litmus.program.name);
    if std::env::var("SHOW").is_ok() {
        eprintln!(
            "{} {api} {arch}: {} executions {:.2} s",
            litmus.program.name,
            exploration.executions,
            exploration.time.as_secs_f64()
        );
        for found in &exploration.found {
            eprintln!("      {}", found.verdict);
        }
    }
    exploration.found.iter().map(|found| Rule::name_of(&found.verdict)).collect()
}

#[test]
fn each_finds_what_it_says() {
    let mut wrong = Vec::new();
    for litmus in bundled() {
        for &(api, arch) in &litmus.under {
            let expected = litmus.expectation(api, arch).map(|one| one.found.clone());
            let must_pass = api.claims(arch) && !litmus.is_mutation();
            let found = found(&litmus, api, arch);
            let unexpected: BTreeSet<_> = found.difference(&litmus.allowed).copied().collect();
            let is_right = match expected {
                _ if must_pass => unexpected.is_empty(),
                Some(expected) => found == expected,
                None => true,
            };
            if !is_right {
                let found: Vec<_> = found.into_iter().collect();
                wrong.push(format!("{}: expect {api} {arch} {}", litmus.program.name, found.join(" ")));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_is_printed_is_read_as_the_same() {
    for litmus in bundled() {
        let mut read = Litmus::parse(&litmus.to_string()).unwrap();
        read.about.clone_from(&litmus.about);
        assert_eq!(read, litmus);
    }
}

/// A checker is trusted when it has found something: there is a planted bug for each rule.
#[test]
fn each_rule_is_seen_broken() {
    let bundled = bundled();
    let expected: BTreeSet<&str> =
        bundled.iter().flat_map(|litmus| &litmus.expected).flat_map(|one| one.found.iter().copied()).collect();
    for rule in Rule::ALL {
        assert!(expected.contains(rule.name()), "no test breaks {rule}");
    }
    for mutant in Mutant::ALL {
        assert!(bundled.iter().any(|litmus| litmus.mutant == Some(*mutant)), "no test plants {mutant}");
    }
}

/// The guide says what each rule is, and which bugs break it.
#[test]
fn the_guide_has_all_rules() {
    let guide = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/LAZY-MMU.md")).unwrap();
    let bundled = bundled();
    for rule in Rule::ALL {
        let row = guide.lines().find(|line| line.starts_with(&format!("| {} |", rule.name()))).unwrap();
        let [_, _, _, bugs, _] = row.split('|').map(str::trim).collect::<Vec<_>>()[..] else { panic!("{row}") };
        for bug in bugs.split(", ") {
            let of_bug = |litmus: &&Litmus| litmus.bug.as_ref().is_some_and(|(number, _)| number == bug);
            let breaks = |litmus: &Litmus| litmus.expected.iter().any(|one| one.found.contains(rule.name()));
            assert!(bundled.iter().filter(of_bug).any(breaks), "{bug} does not break {}", rule.name());
        }
        for litmus in &bundled {
            let Some((bug, _)) = &litmus.bug else { continue };
            let breaks = litmus.expected.iter().any(|one| one.found.contains(rule.name()));
            assert!(!breaks || bugs.split(", ").any(|one| one == bug), "{bug} breaks {}: {row}", rule.name());
        }
    }
}
