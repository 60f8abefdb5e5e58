//! The bundled litmus tests: every strategy passes where it claims to, complete, under every memory model; and where a
//! test says what must be found elsewhere, that is found.

mod common;

use common::{bundled, explore, kinds};
use lazytlb_machine::Kind;
use lazytlb_sched_model::Strategy;

#[test]
fn strategies_pass_where_they_claim_to_and_show_elsewhere_what_is_expected() {
    let tests: Vec<_> = bundled().into_iter().filter(|litmus| !litmus.is_mutation()).collect();
    assert!(tests.len() >= 20, "{} tests", tests.len());
    let mut wrong = Vec::new();
    for litmus in tests {
        for &rules in &litmus.machines {
            for &memory in &litmus.memories {
                for strategy in Strategy::KNOWN.iter().copied() {
                    let name = format!("{} {strategy} {rules} {memory}", litmus.program.name);
                    let result = explore(&litmus, &litmus.setting(strategy, rules, memory));
                    let kinds = kinds(&result);
                    if strategy.claims(rules) {
                        let bad: Vec<&Kind> = kinds.iter().filter(|kind| !litmus.allowed.contains(kind)).collect();
                        if !bad.is_empty() || !result.complete {
                            let first = result.found.first().map(|found| found.verdict.to_string());
                            wrong.push(format!("{name}: complete {}, {first:?}", result.complete));
                        }
                    } else if let Some(expected) = litmus.expectation(strategy, rules)
                        && kinds != expected.kinds.iter().copied().collect()
                    {
                        wrong.push(format!("{name}: found {kinds:?}, expected {:?}", expected.kinds));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
