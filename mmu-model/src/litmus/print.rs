//! Litmus tests as text, as [`Litmus::parse`] reads them.

use core::fmt;

use lazytlb_machine::text::{MAGIC, write_columns, write_line as line};

use super::Litmus;

/// The whole test: what is printed is read as an equal one.
impl fmt::Display for Litmus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let program = &self.program;
        writeln!(f, "{MAGIC}")?;
        for line in self.about.lines() {
            writeln!(f, "{}", format!("# {line}").trim_end())?;
        }
        line(f, "name", [&program.name])?;
        if let Some((number, title)) = &self.bug {
            line(f, "bug", [number, title])?;
        }
        line(f, "mutant", self.mutant)?;
        for (api, arch) in &self.under {
            line(f, "lazy-mmu", [api.name(), "on", arch.name()])?;
        }
        line(f, "cpus", [program.cpus])?;
        line(f, "waiting", program.waiting.iter().map(|&task| &program.tasks[task]))?;
        line(f, "preemptions", [program.preemptions])?;
        for table in 0..program.tables.last().map_or(0, |last| last + 1) {
            let of_table = program.ptes.iter().zip(&program.tables).filter(|&(_, &one)| one == table);
            line(f, "pte", of_table.map(|(name, _)| name))?;
        }
        line(f, "page", &program.pages)?;
        for &(pte, page) in &program.mapped {
            line(f, "map", [&program.ptes[pte], &program.pages[page]])?;
        }
        for device in &program.devices {
            line(f, "device", [device.name.as_str(), if device.is_shared { "shared" } else { "mirror" }])?;
        }
        line(f, "spinlock", &program.locks)?;
        for (lock, name) in program.locks.iter().enumerate() {
            let guarded = program.ptes.iter().zip(&program.guards).filter(|&(_, &guard)| guard == Some(lock));
            let words: Vec<&String> = core::iter::once(name).chain(guarded.map(|(pte, _)| pte)).collect();
            line(f, "guard", words.into_iter().filter(|_| program.guards.contains(&Some(lock))))?;
        }
        if program.guarded {
            line(f, "check", ["locked"])?;
        }
        line(f, "at-most", program.at_most)?;
        writeln!(f)?;
        let column = |(name, script): (&String, &Vec<_>)| {
            let statements = script.iter().map(|&statement| program.text_of(statement));
            core::iter::once(format!("task {name}")).chain(statements).collect::<Vec<String>>()
        };
        let columns: Vec<Vec<String>> = program.tasks.iter().zip(&program.scripts).map(column).collect();
        write_columns(f, &columns)?;
        writeln!(f)?;
        line(f, "allow", &self.allowed)?;
        for one in &self.expected {
            line(f, "expect", [one.api.name(), one.arch.name()].iter().chain(&one.found))?;
        }
        Ok(())
    }
}
