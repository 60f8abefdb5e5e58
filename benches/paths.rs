//! The switch path's hot paths under each strategy, on native memory: `cargo bench --bench paths`.
//!
//! One thread, no contention, interrupts and MMU cost nothing: the library's own instructions. See `lazytlb_native`.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use lazytlb_native::{HotPath, strategies};

fn paths(criterion: &mut Criterion) {
    let strategies = strategies::<2>();
    for path in HotPath::ALL {
        let mut group = criterion.benchmark_group(path.name());
        for (name, run) in &strategies {
            group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
                bencher.iter_custom(|rounds| run(path, rounds));
            });
        }
        group.finish();
    }
}

/// The look at every CPU's slot when the last user goes.
fn scan(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("last-mmput by CPUs");
    let sizes = [(2, strategies::<2>()), (64, strategies::<64>()), (4096, strategies::<4096>())];
    for (cpus, strategies) in &sizes {
        for (name, run) in strategies {
            group.bench_function(BenchmarkId::new(*name, cpus), |bencher| {
                bencher.iter_custom(|rounds| run(HotPath::LastPut, rounds));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, paths, scan);
criterion_main!(benches);
