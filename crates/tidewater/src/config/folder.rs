//! The folders that a database's tables get in the lake.
//!
//! A folder's name is the table's, with every character outside `[A-Za-z0-9_.-]` as `_`. Where two names
//! come out equal ignoring case, the later one gets `_` and six hexadecimal digits of its name's SHA-256.
//! A choice once made stays (it is kept in the table's metadata): tables that are in the lake already are
//! given with [`Folders::keep`] before new ones ask.

use super::Mode;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// The folder beside the schemas that holds Tidewater's own tables.
const OWN_FOLDER: &str = "_tidewater";

/// What is appended to a table's folder for its history.
const HISTORY: &str = "_history";

/// The folders of one database.
#[derive(Debug, Default)]
pub struct Folders {
    /// Schema folder in lower case to schema.
    schemas: BTreeMap<String, (String, String)>,
    /// Path in lower case to the table that has it.
    taken: BTreeMap<String, String>,
}

/// A table's folders, below the database's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableFolder {
    /// The schema's folder.
    pub schema: String,
    /// The table's folder in it; a history has `_history` appended.
    pub table: String,
}

/// Two tables would land in one folder.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "tables {first} and {second} would both be in the folder {folder}: exclude one of them, or change its mode"
)]
pub struct FolderCollision {
    /// below the database's folder
    pub folder: String,
    /// the one that has it
    pub first: String,
    /// the one that cannot have it
    pub second: String,
}

impl Folders {
    /// Remembers the folder of a table that is in the lake already.
    pub fn keep(
        &mut self,
        schema: &str,
        table: &str,
        mode: Mode,
        folder: &TableFolder,
    ) -> Result<(), FolderCollision> {
        self.schemas.insert(folder.schema.to_ascii_lowercase(), (schema.to_owned(), folder.schema.clone()));
        self.take(schema, table, mode, folder)
    }

    /// Chooses the folder of a new table.
    pub fn assign(&mut self, schema: &str, table: &str, mode: Mode) -> Result<TableFolder, FolderCollision> {
        let schema_folder = self.schema_folder(schema);
        let plain = TableFolder { schema: schema_folder, table: folder_name(table) };
        let name = format!("{schema}.{table}");
        let own = self.taken.get(&plain.path().to_ascii_lowercase());
        let folder = match own {
            Some(other) if *other != name && !other.ends_with(" (history)") => {
                TableFolder { table: format!("{}_{}", plain.table, digest(table)), ..plain }
            }
            _ => plain,
        };
        self.take(schema, table, mode, &folder)?;
        Ok(folder)
    }

    fn schema_folder(&mut self, schema: &str) -> String {
        if let Some((_, folder)) = self.schemas.values().find(|(name, _)| name == schema) {
            return folder.clone();
        }
        let plain = folder_name(schema);
        let lower = plain.to_ascii_lowercase();
        let folder = if lower == OWN_FOLDER || self.schemas.contains_key(&lower) {
            format!("{plain}_{}", digest(schema))
        } else {
            plain
        };
        self.schemas.insert(folder.to_ascii_lowercase(), (schema.to_owned(), folder.clone()));
        folder
    }

    fn take(
        &mut self,
        schema: &str,
        table: &str,
        mode: Mode,
        folder: &TableFolder,
    ) -> Result<(), FolderCollision> {
        let name = format!("{schema}.{table}");
        let mut wanted = Vec::new();
        if matches!(mode, Mode::Mirror | Mode::Both) {
            wanted.push((folder.path(), name.clone()));
        }
        if matches!(mode, Mode::History | Mode::Both) {
            wanted.push((format!("{}{HISTORY}", folder.path()), format!("{name} (history)")));
        }
        for (path, owner) in &wanted {
            if let Some(first) = self.taken.get(&path.to_ascii_lowercase()).filter(|first| *first != owner) {
                return Err(FolderCollision {
                    folder: path.clone(),
                    first: first.clone(),
                    second: owner.clone(),
                });
            }
        }
        self.taken.extend(wanted.into_iter().map(|(path, owner)| (path.to_ascii_lowercase(), owner)));
        Ok(())
    }
}

impl TableFolder {
    fn path(&self) -> String {
        format!("{}/{}", self.schema, self.table)
    }
}

/// A name as a folder: no separators, no name that a file system reads as something else.
pub fn folder_name(name: &str) -> String {
    let folder: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-') { c } else { '_' })
        .collect();
    match folder.as_str() {
        "" | "." | ".." => "_".repeat(folder.len().max(1)),
        _ => folder,
    }
}

fn digest(name: &str) -> String {
    Sha256::digest(name.as_bytes()).iter().take(3).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(schema: &str, table: &str) -> TableFolder {
        TableFolder { schema: schema.into(), table: table.into() }
    }

    #[test]
    fn a_name_keeps_what_every_file_system_takes() {
        assert_eq!(folder_name("Order Lines/2026"), "Order_Lines_2026");
        assert_eq!(folder_name("a.b-c_d"), "a.b-c_d");
        assert_eq!(folder_name(".."), "__");
        assert_eq!(folder_name("größe"), "gr__e");
    }

    #[test]
    fn the_later_of_two_equal_names_gets_a_digest_of_its_own() {
        let mut folders = Folders::default();
        assert_eq!(folders.assign("public", "orders", Mode::Mirror), Ok(folder("public", "orders")));
        let second = folders.assign("public", "Orders", Mode::Mirror).unwrap();
        assert_eq!(second, folder("public", "Orders_b7e8ac"));
        assert_eq!(
            folders.assign("Public", "orders", Mode::Mirror).unwrap().schema,
            format!("Public_{}", digest("Public"))
        );
    }

    #[test]
    fn a_folder_once_chosen_stays_with_its_table() {
        let mut folders = Folders::default();
        folders.keep("public", "Orders", Mode::Mirror, &folder("public", "Orders")).unwrap();
        let later = folders.assign("public", "orders", Mode::Mirror).unwrap();
        assert_eq!(later.table, format!("orders_{}", digest("orders")));
        assert_eq!(folders.assign("public", "Orders", Mode::Mirror), Ok(folder("public", "Orders")));
    }

    #[test]
    fn a_history_and_a_table_of_its_name_collide() {
        let mut folders = Folders::default();
        folders.assign("public", "orders_history", Mode::Mirror).unwrap();
        let collision = folders.assign("public", "orders", Mode::Both).unwrap_err();
        assert_eq!(collision.folder, "public/orders_history");
        let mut other_way = Folders::default();
        other_way.assign("public", "orders", Mode::Both).unwrap();
        assert!(other_way.assign("public", "orders_history", Mode::Mirror).is_err());
    }

    #[test]
    fn a_schema_cannot_take_the_folder_of_tidewaters_own_tables() {
        let chosen = Folders::default().assign("_tidewater", "consistent_points", Mode::Mirror).unwrap();
        assert_ne!(chosen.schema, OWN_FOLDER);
    }
}
