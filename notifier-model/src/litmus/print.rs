//! Litmus tests as text, as [`Litmus::parse`] reads them.

use core::fmt;

use lazytlb_machine::text::{MAGIC, write_columns, write_line as line};

use super::{FLAGS, Litmus};

/// The whole test: what is printed is read as an equal one.
impl fmt::Display for Litmus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let program = &self.program;
        let pte = |one: usize| program.ptes[one].as_str();
        writeln!(f, "{MAGIC}")?;
        for line in self.about.lines() {
            writeln!(f, "{}", format!("# {line}").trim_end())?;
        }
        line(f, "name", [&program.name])?;
        if let Some((number, title)) = &self.bug {
            line(f, "bug", [number, title])?;
        }
        line(f, "mutant", self.mutant)?;
        line(f, "mmu-notifier", &self.schemes)?;
        if let Some(form) = program.form {
            // With nothing left out that is in it, whichever form it comes from.
            let without = FLAGS.iter().filter(|(_, flag)| !*flag(&mut form.clone())).map(|(name, _)| *name);
            let without: Vec<&str> = without.collect();
            let words = ["reviewed"].into_iter().chain((!without.is_empty()).then_some("without"));
            line(f, "form", words.chain(without))?;
        }
        line(f, "pte", &program.ptes)?;
        line(f, "page", &program.pages)?;
        for &(entry, page) in &program.mapped {
            let read_only = program.protected.contains(&entry).then_some("read-only");
            line(f, "map", [pte(entry), &program.pages[page]].into_iter().chain(read_only))?;
        }
        for device in &program.devices {
            let (first, last) = (pte(*device.entries.start()), pte(*device.entries.end()));
            line(f, "device", [&device.name, device.client.name(), first, last])?;
            let mirrored = device.mapped.iter().map(|&one| pte(one));
            line(
                f,
                "mirrors",
                core::iter::once(&device.name[..]).chain(mirrored).filter(|_| !device.mapped.is_empty()),
            )?;
            line(f, "cached", Some(&device.name).filter(|_| device.cached))?;
            line(f, "late", Some(&device.name).filter(|_| !device.subscribed))?;
        }
        for (lock, name) in program.locks.iter().enumerate() {
            line(f, if program.mutexes.contains(&lock) { "mutex" } else { "spinlock" }, [name])?;
        }
        writeln!(f)?;
        let column = |(name, script): (&String, &Vec<_>)| {
            let statements = script.iter().map(|&statement| program.text_of(statement));
            core::iter::once(format!("task {name}")).chain(statements).collect::<Vec<String>>()
        };
        let columns: Vec<Vec<String>> = program.tasks.iter().zip(&program.scripts).map(column).collect();
        write_columns(f, &columns)?;
        writeln!(f)?;
        line(f, "allow", &self.allowed)?;
        for (scheme, found) in &self.expected {
            line(f, "expect", core::iter::once(&scheme.name()).chain(found))?;
        }
        Ok(())
    }
}
