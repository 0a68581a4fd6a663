//! Names in the lake, from names in Postgres.
//!
//! The choice is made once, when a table is created in the lake, and kept in its metadata; these functions
//! only say what it is then.

use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::fmt::Write;

/// The folder of a database, schema or table: characters outside `[A-Za-z0-9_.-]` become `_`.
///
/// A name of dots only would leave its place in a path, so its dots become `_` too.
pub fn folder_name(source: &str) -> String {
    if source.bytes().all(|byte| byte == b'.') {
        return "_".repeat(source.len().max(1));
    }
    source
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-') { c } else { '_' })
        .collect()
}

/// The folders of a database's tables, `[schema, table]` for each `(schema, table)` in order.
///
/// Two that are equal ignoring case could not be told apart where file names ignore it: the first keeps
/// its name, each later one's table folder gets `_` and six hex digits of its name's SHA-256.
///
/// Folders of tables that came earlier are `taken`.
pub fn table_folders(tables: &[(&str, &str)], taken: &[[String; 2]]) -> Vec<[String; 2]> {
    let mut taken: HashSet<String> =
        taken.iter().map(|[schema, table]| format!("{schema}/{table}").to_lowercase()).collect();
    tables
        .iter()
        .map(|(schema, table)| {
            let (schema_folder, clean) = (folder_name(schema), folder_name(table));
            let chosen = first_free(&clean, table, |chosen| {
                taken.insert(format!("{schema_folder}/{chosen}").to_lowercase())
            });
            [schema_folder, chosen]
        })
        .collect()
}

/// The columns of a table in the lake, in the order of `source`.
///
/// Characters that Delta's readers refuse in column names become `_`. Names that are equal ignoring case
/// could not be told apart by readers that ignore it: the first keeps its name, each later one gets `_`
/// and the first six hex digits of the SHA-256 of its name in Postgres.
pub fn lake_column_names(source: &[String]) -> Vec<String> {
    lake_column_names_beside(source, &vec![None; source.len()])
}

/// As [`lake_column_names`], where some columns have a name already, which stays theirs.
pub fn lake_column_names_beside(source: &[String], kept: &[Option<String>]) -> Vec<String> {
    let mut taken: HashSet<String> = kept.iter().flatten().map(|name| name.to_lowercase()).collect();
    let kept = kept.iter().chain(std::iter::repeat(&None));
    source
        .iter()
        .zip(kept)
        .map(|(name, kept)| match kept {
            Some(kept) => kept.clone(),
            None => first_free(&clean_column_name(name), name, |chosen| taken.insert(chosen.to_lowercase())),
        })
        .collect()
}

fn clean_column_name(name: &str) -> String {
    name.chars()
        .map(
            |c| {
                if matches!(c, ' ' | ',' | ';' | '{' | '}' | '(' | ')' | '\n' | '\t' | '=') { '_' } else { c }
            },
        )
        .collect()
}

/// `clean` if it is free, else with digits of the hash of `name` behind it. Six digits may meet a name
/// that really is so: then more of them are taken.
fn first_free(clean: &str, name: &str, mut take: impl FnMut(&str) -> bool) -> String {
    let mut chosen = clean.to_owned();
    let mut digits = 6;
    while !take(&chosen) {
        chosen = format!("{clean}_{}", hash_digits(name, digits));
        digits += 2;
    }
    chosen
}

fn hash_digits(name: &str, digits: usize) -> String {
    let mut text = String::new();
    for byte in Sha256::digest(name.as_bytes()) {
        // Writing into a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text.truncate(digits);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns(names: &[&str]) -> Vec<String> {
        lake_column_names(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn plain_names_stay_as_they_are() {
        assert_eq!(columns(&["id", "Größe", "a.b", "x-y", "\"q\""]), ["id", "Größe", "a.b", "x-y", "\"q\""]);
    }

    #[test]
    fn each_forbidden_character_becomes_an_underscore() {
        assert_eq!(columns(&["a b,c;d{e}f(g)h\ni\tj=k"]), ["a_b_c_d_e_f_g_h_i_j_k"]);
    }

    #[test]
    fn the_later_of_two_equal_names_gets_six_digits_of_its_hash() {
        // printf %s ID | sha256sum, and so on
        assert_eq!(columns(&["id", "ID"]), ["id", "ID_384397"]);
        assert_eq!(columns(&["a b", "a_b", "a,b"]), ["a_b", "a_b_648fa9", "a_b_1eb7c5"]);
    }

    #[test]
    fn tables_that_differ_in_case_get_folders_of_their_own() {
        let tables =
            [("public", "Orders"), ("public", "orders"), ("other", "orders"), ("p", "a b"), ("p", "a_b")];
        let folders = table_folders(&tables, &[]);
        assert_eq!(folders[0], ["public", "Orders"]);
        assert_eq!(folders[1], ["public".to_owned(), format!("orders_{}", hash_digits("orders", 6))]);
        assert_eq!(folders[2], ["other", "orders"]);
        assert_eq!(folders[3], ["p", "a_b"]);
        assert!(folders[4][1].starts_with("a_b_") && folders[4][1].len() == "a_b_".len() + 6);
    }

    #[test]
    fn a_column_that_looks_like_a_hashed_one_is_no_collision() {
        let hashed = columns(&["id", "ID"])[1].clone();
        let names = columns(&["id", &hashed, "ID"]);
        assert_eq!(names[1], hashed);
        assert!(names[2].starts_with(&hashed) && names[2].len() == hashed.len() + 2);
    }

    #[test]
    fn a_column_that_has_its_name_keeps_it_whatever_comes_before_it() {
        let source = ["id", "ID", "note"].map(str::to_owned);
        let kept = [None, None, Some("id".to_owned())];
        let names = lake_column_names_beside(&source, &kept);
        assert_eq!(names[2], "id");
        assert!(names[0].starts_with("id_") && names[1].starts_with("ID_"), "{names:?}");
    }

    #[test]
    fn a_later_table_does_not_take_the_folder_of_one_that_was_renamed() {
        let taken = ["public".to_owned(), "Orders".to_owned()];
        let folders = table_folders(&[("public", "orders"), ("public", "lines")], &[taken]);
        assert_eq!(folders[0][1], format!("orders_{}", hash_digits("orders", 6)));
        assert_eq!(folders[1][1], "lines");
    }

    #[test]
    fn folders_hold_only_portable_characters() {
        assert_eq!(folder_name("orders_2026.v-1"), "orders_2026.v-1");
        assert_eq!(folder_name("Größe/x y"), "Gr__e_x_y");
        assert_eq!(folder_name(".."), "__");
        assert_eq!(folder_name(""), "_");
    }
}
