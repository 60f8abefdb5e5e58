//! The bundled litmus tests: every strategy passes where it claims to, complete, under every memory model; and where a
//! test says what must be found elsewhere, that is found.

use std::collections::BTreeSet;
use std::path::Path;

use lazytlb_machine::{Kind, Limits, Reduction, Search};
use lazytlb_sched_model::{Litmus, Model, Strategy};

fn bundled() -> Vec<Litmus> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../litmus");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let parse = |file: &std::path::PathBuf| {
        let litmus = Litmus::parse(&std::fs::read_to_string(file).unwrap());
        let litmus = litmus.unwrap_or_else(|error| panic!("{}", error.in_file(&file.display().to_string())));
        assert_eq!(Some(litmus.program.name.as_str()), file.file_stem().and_then(|stem| stem.to_str()));
        litmus
    };
    files.iter().map(parse).collect()
}

#[test]
fn strategies_pass_where_they_claim_to_and_show_elsewhere_what_is_expected() {
    let mut wrong = Vec::new();
    for litmus in bundled().into_iter().filter(|litmus| !litmus.is_mutation()) {
        for &rules in &litmus.machines {
            for &memory in &litmus.memories {
                for strategy in Strategy::ALL {
                    let setting = litmus.setting(strategy, rules, memory);
                    let name = format!("{} {strategy} {rules} {memory}", litmus.program.name);
                    let limits = Limits { stop_at_first: false, executions: 3_000_000, ..Limits::default() };
                    let model = Model::new(&litmus.program, &setting);
                    let result = model.explore(Search::Exhaustive(Reduction::Full), limits, |_| {});
                    let kinds: BTreeSet<Kind> = result.found.iter().map(|found| found.verdict.kind).collect();
                    let expected = litmus.expectation(strategy, rules);
                    if strategy.claims(rules) {
                        let bad: Vec<_> = kinds.iter().filter(|kind| !litmus.allowed.contains(kind)).collect();
                        if !bad.is_empty() || !result.complete {
                            let first = result.found.first().map(|found| found.verdict.to_string());
                            wrong.push(format!("{name}: complete {}, {first:?}", result.complete));
                        }
                    } else if let Some(expected) = expected
                        && kinds != expected.kinds.iter().copied().collect()
                    {
                        wrong.push(format!("{name}: found {kinds:?}, expected {:?}", expected.kinds));
                    }
                    println!(
                        "{name}: {} executions, {} states, {:?}, {kinds:?}",
                        result.executions, result.states, result.time
                    );
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
