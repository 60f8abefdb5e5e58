//! All bundled litmus tests of MMU notifiers: each finds what it says.

use core::time::Duration;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use lazytlb_machine::{Limits, Reduction, Search};
use lazytlb_notifier_model::{Client, Invariant, Litmus, Model, Mutant, Scheme, Statement};

/// The bundled tests of this kind.
fn bundled() -> Vec<Litmus> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../litmus/mmu-notifier");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    let read = |file: &std::path::PathBuf| {
        let text = fs::read_to_string(file).unwrap();
        Litmus::parse(&text).unwrap_or_else(|error| panic!("{}", error.in_file(&file.to_string_lossy())))
    };
    files.iter().map(read).collect()
}

/// All that is found, over all interleavings.
fn found(litmus: &Litmus, scheme: Scheme) -> BTreeSet<&'static str> {
    let limits = Limits { executions: 10_000_000, time: Duration::from_secs(120), stop_at_first: false };
    let model = Model::new(&litmus.program, &litmus.setting(scheme));
    let exploration = model.explore(Search::Exhaustive(Reduction::Full), limits, |_| {});
    assert!(exploration.complete, "{} under {scheme}", litmus.program.name);
    if std::env::var("SHOW").is_ok() {
        let seconds = exploration.time.as_secs_f64();
        eprintln!("{} {scheme}: {} executions {seconds:.2} s", litmus.program.name, exploration.executions);
        for found in &exploration.found {
            eprintln!("      {}", found.verdict);
        }
    }
    exploration.found.iter().map(|found| Invariant::name_of(&found.verdict)).collect()
}

#[test]
fn each_finds_what_it_says() {
    let mut wrong = Vec::new();
    for litmus in bundled() {
        for &scheme in &litmus.schemes {
            let found = found(&litmus, scheme);
            let is_right = if litmus.is_claimed() {
                found.is_subset(&litmus.allowed)
            } else {
                litmus.expectation(scheme) == Some(&found)
            };
            if !is_right {
                let found: Vec<_> = found.into_iter().collect();
                wrong.push(format!("{}: expect {scheme} {}", litmus.program.name, found.join(" ")));
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

/// A checker is trusted when it has found something: there is a planted bug for each invariant, and a test for each client that is right.
#[test]
fn each_invariant_is_seen_broken() {
    let bundled = bundled();
    let expected: BTreeSet<&str> =
        bundled.iter().flat_map(|litmus| &litmus.expected).flat_map(|(_, found)| found.iter().copied()).collect();
    for rule in Invariant::ALL {
        assert!(expected.contains(rule.name()), "no test breaks {rule}");
    }
    for mutant in Mutant::ALL {
        assert!(bundled.iter().any(|litmus| litmus.mutant == Some(*mutant)), "no test plants {mutant}");
    }
    for client in Client::ALL {
        let has = |litmus: &&Litmus| litmus.program.devices.iter().any(|device| device.client == *client);
        assert!(bundled.iter().any(|litmus| has(&litmus)), "no test has a device of {client}");
    }
}

/// A script without the pair that starts at a statement, if one does, and anything is taken away within: all but its start and its end.
fn without_pair(script: &[Statement], start: usize) -> Option<Vec<Statement>> {
    let begins = |one: &Statement| matches!(one, Statement::Start(..) | Statement::StartNonblock(..));
    let takes_away = |one: &Statement| matches!(one, Statement::Zap(_) | Statement::Clear(_) | Statement::Protect(_));
    let (before, [first, behind @ ..]) = script.split_at(start) else { return None };
    let mut depth = 1;
    let end = behind.iter().position(|one| {
        depth = depth + u32::from(begins(one)) - u32::from(*one == Statement::End);
        depth == 0
    })?;
    let within = &behind[..end];
    (begins(first) && within.iter().any(takes_away)).then(|| [before, within, &behind[end + 1..]].concat())
}

/// Whatever takes away what is mapped must be told, where somebody mirrors: without any one of its pairs no caller goes unnoticed (C19, I14), but where another
/// one covers it that it is in (`c12-nested-*`).
#[test]
fn each_change_needs_its_pair() {
    let mut pairs = 0;
    for litmus in bundled().into_iter().filter(Litmus::is_claimed) {
        if litmus.program.name.starts_with("c12-") {
            continue;
        }
        let scripts = &litmus.program.scripts;
        let all =
            scripts.iter().enumerate().flat_map(|(task, script)| (0..script.len()).map(move |start| (task, start)));
        for (task, start) in all {
            let Some(script) = without_pair(&scripts[task], start) else { continue };
            let mut mutant = litmus.clone();
            mutant.program.scripts[task] = script;
            mutant.mutant = Some(Mutant::Caller);
            assert!(found(&mutant, litmus.schemes[0]).contains("I14"), "{} {start}", litmus.program.name);
            pairs += 1;
        }
    }
    assert!(pairs > 40, "{pairs}");
}

/// What a device of KVM's is kept right by keeps all others right that mirror, and may be made to wait.
#[test]
fn whoever_mirrors_is_kept_right_by_the_same_callers() {
    let others = [Client::Gru, Client::Xpmem, Client::Odp, Client::Hmm, Client::Userptr];
    for litmus in bundled().into_iter().filter(Litmus::is_claimed).filter(|one| one.client() == Some(Client::Kvm)) {
        let is_counted = |one: &Statement| matches!(one, Statement::Fault(_, _, Some(_)));
        if litmus.program.form.is_some() || litmus.program.scripts.iter().flatten().any(is_counted) {
            continue;
        }
        for client in others {
            let mut other = litmus.clone();
            other.program.devices.iter_mut().for_each(|device| device.client = client);
            let found = found(&other, litmus.schemes[0]);
            assert!(found.is_subset(&litmus.allowed), "{} with {client}: {found:?}", litmus.program.name);
        }
    }
}

/// No driver is given a try that it does not need: with one less it is found to look up again.
#[test]
fn c31_each_client_looks_up_as_often_as_it_is_said() {
    let mut lessened = 0;
    for mut litmus in bundled() {
        let faults = litmus.program.scripts.iter_mut().flatten();
        let bounds = faults.filter_map(|one| if let Statement::Fault(_, _, most) = one { most.as_mut() } else { None });
        let Some(most) = bounds.reduce(|one, _| one).filter(|most| **most > 1) else { continue };
        *most -= 1;
        lessened += 1;
        litmus.mutant = Some(Mutant::Caller);
        assert!(found(&litmus, litmus.schemes[0]).contains("I16"), "{}", litmus.program.name);
    }
    assert_eq!(lessened, 4);
}

/// The guide says what each invariant is, and which bugs break it; and has all kinds of devices.
#[test]
fn the_guide_has_all_invariants_and_clients() {
    let guide = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/MMU-NOTIFIER.md")).unwrap();
    let bundled = bundled();
    for rule in Invariant::ALL {
        let row = guide.lines().find(|line| line.starts_with(&format!("| {} |", rule.name()))).unwrap();
        let [_, _, _, bugs, _] = row.split('|').map(str::trim).collect::<Vec<_>>()[..] else { panic!("{row}") };
        let said: BTreeSet<&str> = bugs.split(", ").collect();
        let breaks = |litmus: &&Litmus| litmus.expected.iter().any(|(_, found)| found.contains(rule.name()));
        let with_bug = bundled.iter().filter(breaks).filter_map(|litmus| Some(litmus.bug.as_ref()?.0.as_str()));
        assert_eq!(said, with_bug.collect(), "{rule}");
    }
    for client in Client::ALL {
        assert!(guide.contains(&format!("\n| `{client}` |")), "{client}");
    }
}

/// The scenarios' table names tests that there are.
#[test]
fn the_guide_names_tests_that_there_are() {
    let guide = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/MMU-NOTIFIER.md")).unwrap();
    let bundled = bundled();
    let is_test =
        |word: &str| word.split_once('-').is_some_and(|(number, _)| number.starts_with('c') && number.len() == 3);
    for name in guide.split('`').skip(1).step_by(2).filter(|word| is_test(word)) {
        let prefix = name.trim_end_matches('*');
        let is_it = |litmus: &Litmus| {
            let name_of = &litmus.program.name;
            if prefix == name { name_of == name } else { name_of.starts_with(prefix) }
        };
        assert!(bundled.iter().any(is_it), "there is no {name}");
    }
}
