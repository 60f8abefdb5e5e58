//! Lazy MMU mode: `cargo bench --bench lazy_mmu`.
//!
//! *nested pair*: a section in a section, begun and ended, beside the same counters written by hand; the two must not differ by more
//! than a tenth. With one task each pair waits for the store of the one before; with eight, which take turns, it does not.
//!
//! *batching*: so many entries changed in a section, and one by one. What hardware would cost is nothing in the first group, so that it
//! shows what batching itself costs; in the second it is what a thing of the same kind costs on this host: a full fence for arm64's
//! barriers, a system call for Xen's hypercalls. For what interrupts other CPUs there is nothing of the kind in one process:
//! `lazytlb lazy-mmu --batching` counts it.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use lazytlb_native::mmu::{BackEnd, TABLE, TASKS, nested_pair, nested_pair_by_hand, nested_pair_in_cells};

fn pair(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("nested pair");
    for tasks in [1, TASKS] {
        group.bench_function(BenchmarkId::new("ours", tasks), |bencher| {
            bencher.iter_custom(|rounds| nested_pair(tasks, rounds));
        });
        group.bench_function(BenchmarkId::new("ours in cells", tasks), |bencher| {
            bencher.iter_custom(|rounds| nested_pair_in_cells(tasks, rounds));
        });
        group.bench_function(BenchmarkId::new("by hand", tasks), |bencher| {
            bencher.iter_custom(|rounds| nested_pair_by_hand(tasks, rounds));
        });
    }
    group.finish();
}

fn batching(criterion: &mut Criterion) {
    for stand_ins in [false, true] {
        let mut group = criterion.benchmark_group(if stand_ins { "batching, stand-ins" } else { "batching" });
        for back_end in BackEnd::ALL.into_iter().filter(|back_end| !stand_ins || back_end.has_stand_in()) {
            for entries in [1, 2, 4, 16, 64, TABLE] {
                group.throughput(Throughput::Elements(entries as u64));
                for (name, in_section) in [("in a section", true), ("one by one", false)] {
                    let id = BenchmarkId::new(format!("{} {name}", back_end.name()), entries);
                    group.bench_function(id, |bencher| {
                        bencher.iter_custom(|rounds| back_end.change(entries, in_section, stand_ins, rounds));
                    });
                }
            }
        }
        group.finish();
    }
}

criterion_group!(benches, pair, batching);
criterion_main!(benches);
