//! A wholesaler's order system, after the shape of TPC-C: nine tables, three kinds of transactions, and a schema that
//! its owners change while it is in use.
//!
//! Transactions are functions in the database, so that an application session sends one statement for each. A changed
//! schema may cost it a deadlock or a lost lock race, which it answers as applications do, by trying again.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls};

const WAREHOUSES: i32 = 2;
const DISTRICTS: i32 = 5;
const CUSTOMERS: i32 = 60;
const ITEMS: i32 = 200;

const PAUSE: Duration = Duration::from_millis(20);

const TABLES: &str = "
CREATE TABLE warehouse (w_id int PRIMARY KEY, w_name text, w_ytd numeric(14,2) NOT NULL DEFAULT 0);
CREATE TABLE district (d_w_id int, d_id int, d_next_o_id int NOT NULL DEFAULT 1, d_ytd numeric(14,2) NOT NULL DEFAULT 0,
    PRIMARY KEY (d_w_id, d_id));
CREATE TABLE customer (c_w_id int, c_d_id int, c_id int, c_balance numeric(14,2) NOT NULL DEFAULT 0,
    c_payments int NOT NULL DEFAULT 0, c_data text, PRIMARY KEY (c_w_id, c_d_id, c_id));
CREATE TABLE item (i_id int PRIMARY KEY, i_name text NOT NULL, i_price numeric(5,2) NOT NULL);
CREATE TABLE stock (s_w_id int, s_i_id int, s_quantity int NOT NULL, s_ytd int NOT NULL DEFAULT 0, s_data text,
    PRIMARY KEY (s_w_id, s_i_id));
CREATE TABLE orders (o_w_id int, o_d_id int, o_id int, o_c_id int NOT NULL, o_entry timestamptz NOT NULL, o_carrier int,
    o_lines int NOT NULL, PRIMARY KEY (o_w_id, o_d_id, o_id));
CREATE TABLE new_order (no_w_id int, no_d_id int, no_o_id int, PRIMARY KEY (no_w_id, no_d_id, no_o_id));
CREATE TABLE order_line (ol_w_id int, ol_d_id int, ol_o_id int, ol_number int, ol_i_id int NOT NULL,
    ol_quantity int NOT NULL, ol_amount numeric(8,2) NOT NULL, ol_delivered timestamptz,
    PRIMARY KEY (ol_w_id, ol_d_id, ol_o_id, ol_number));
CREATE TABLE payment (p_w_id int, p_c_id int, p_amount numeric(8,2), p_at timestamptz);

CREATE FUNCTION take_order(w int, d int, c int, lines int, seed int) RETURNS void LANGUAGE plpgsql AS $$
DECLARE o int; i int; quantity int;
BEGIN
    UPDATE district SET d_next_o_id = d_next_o_id + 1 WHERE d_w_id = w AND d_id = d RETURNING d_next_o_id - 1 INTO o;
    INSERT INTO orders (o_w_id, o_d_id, o_id, o_c_id, o_entry, o_lines) VALUES (w, d, o, c, clock_timestamp(), lines);
    INSERT INTO new_order (no_w_id, no_d_id, no_o_id) VALUES (w, d, o);
    FOR n IN 1..lines LOOP
        -- In the order of their ids, so that two orders do not wait for each other.
        i := n * (200 / lines) - seed % (200 / lines);
        quantity := 1 + (seed + n) % 10;
        UPDATE stock SET s_ytd = s_ytd + quantity,
            s_quantity = CASE WHEN s_quantity > quantity + 10 THEN s_quantity - quantity ELSE s_quantity + 91 END
            WHERE s_w_id = w AND s_i_id = i;
        INSERT INTO order_line (ol_w_id, ol_d_id, ol_o_id, ol_number, ol_i_id, ol_quantity, ol_amount)
            SELECT w, d, o, n, i, quantity, quantity * i_price FROM item WHERE i_id = i;
    END LOOP;
END $$;

CREATE FUNCTION take_payment(w int, d int, c int, amount numeric) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE warehouse SET w_ytd = w_ytd + amount WHERE w_id = w;
    UPDATE district SET d_ytd = d_ytd + amount WHERE d_w_id = w AND d_id = d;
    UPDATE customer SET c_balance = c_balance - amount, c_payments = c_payments + 1,
        c_data = CASE WHEN c_id % 10 = 0 THEN left(c_id || ' ' || amount || ' ' || c_data, 4000) ELSE c_data END
        WHERE c_w_id = w AND c_d_id = d AND c_id = c;
    INSERT INTO payment (p_w_id, p_c_id, p_amount, p_at) VALUES (w, c, amount, clock_timestamp());
END $$;

CREATE FUNCTION deliver(w int) RETURNS void LANGUAGE plpgsql AS $$
DECLARE d int; o int; total numeric; c int;
BEGIN
    FOR d IN SELECT d_id FROM district WHERE d_w_id = w ORDER BY d_id LOOP
        DELETE FROM new_order WHERE (no_w_id, no_d_id, no_o_id) IN (SELECT no_w_id, no_d_id, no_o_id FROM new_order
            WHERE no_w_id = w AND no_d_id = d ORDER BY no_o_id LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING no_o_id INTO o;
        CONTINUE WHEN o IS NULL;
        UPDATE orders SET o_carrier = 1 + o % 10 WHERE o_w_id = w AND o_d_id = d AND o_id = o RETURNING o_c_id INTO c;
        UPDATE order_line SET ol_delivered = clock_timestamp() WHERE ol_w_id = w AND ol_d_id = d AND ol_o_id = o;
        SELECT sum(ol_amount) INTO total FROM order_line WHERE ol_w_id = w AND ol_d_id = d AND ol_o_id = o;
        UPDATE customer SET c_balance = c_balance + total WHERE c_w_id = w AND c_d_id = d AND c_id = c;
    END LOOP;
END $$;";

/// Tables whose every change reaches the lake. The others, without a key, are only inserted into.
pub const KEYED: [&str; 8] =
    ["warehouse", "district", "customer", "item", "stock", "orders", "new_order", "order_line"];

pub const WITHOUT_KEY: [&str; 1] = ["payment"];

/// Makes the tables and what is in them at first.
pub async fn create(client: &Client) {
    client.batch_execute(TABLES).await.unwrap();
    let rows = format!(
        "INSERT INTO warehouse SELECT w, 'w' || w FROM generate_series(1, {WAREHOUSES}) w;
         INSERT INTO district SELECT w_id, d FROM warehouse, generate_series(1, {DISTRICTS}) d;
         INSERT INTO customer SELECT d_w_id, d_id, c, 0, 0, repeat(md5(c::text), 60)
             FROM district, generate_series(1, {CUSTOMERS}) c;
         INSERT INTO item SELECT i, 'item ' || i, 1 + i % 90 FROM generate_series(1, {ITEMS}) i;
         INSERT INTO stock SELECT w_id, i_id, 50, 0, md5(i_id::text) FROM warehouse, item"
    );
    client.batch_execute(&rows).await.unwrap();
}

/// Sessions at work.
pub struct Business {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    sessions: Vec<JoinHandle<()>>,
}

impl Business {
    pub fn start(url: &str, seed: u64, sessions: u64) -> Business {
        let (stop, done) = (Arc::new(AtomicBool::default()), Arc::new(AtomicU64::default()));
        let sessions = (0..sessions)
            .map(|number| {
                let random = StdRng::seed_from_u64(seed.wrapping_add(number));
                tokio::spawn(trade(url.to_owned(), random, Arc::clone(&stop), Arc::clone(&done)))
            })
            .collect();
        Business { stop, done, sessions }
    }

    /// Ends the sessions after their present transactions; gives how many were committed.
    pub async fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for session in self.sessions {
            session.await.unwrap();
        }
        self.done.load(Ordering::Relaxed)
    }
}

async fn trade(url: String, mut random: StdRng, stop: Arc<AtomicBool>, done: Arc<AtomicU64>) {
    let mut client: Option<Client> = None;
    while !stop.load(Ordering::Relaxed) {
        tokio::time::sleep(PAUSE).await;
        let Some(open) = &client else {
            client = connect(&url).await;
            continue;
        };
        match open.batch_execute(&transaction(&mut random)).await {
            Ok(()) => {
                done.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) if is_lost(open, &error) => client = None,
            Err(error) if is_to_be_tried_again(&error) => {}
            Err(error) => panic!("the application's statement failed: {error:?}"),
        }
    }
}

fn transaction(random: &mut StdRng) -> String {
    let (w, d) = (random.random_range(1..=WAREHOUSES), random.random_range(1..=DISTRICTS));
    let (c, seed) = (random.random_range(1..=CUSTOMERS), random.random_range(0..1000));
    match random.random_range(0..20) {
        0 => format!("SELECT deliver({w})"),
        1..=9 => format!("SELECT take_payment({w}, {d}, {c}, {seed}.{:02})", seed % 100),
        _ => format!("SELECT take_order({w}, {d}, {c}, {}, {seed})", random.random_range(3..=8)),
    }
}

pub async fn connect(url: &str) -> Option<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.ok()?;
    tokio::spawn(connection);
    Some(client)
}

/// The server went away, or is about to.
pub fn is_lost(client: &Client, error: &tokio_postgres::Error) -> bool {
    client.is_closed()
        || error.code().is_none_or(|code| code.code().starts_with("08") || code.code().starts_with("57P"))
}

/// A deadlock, or a lock that was not to be had in time.
fn is_to_be_tried_again(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|code| ["40P01", "55P03"].contains(&code.code()))
}

/// The owners' changes of the schema, in an order drawn from a seed.
pub struct Owners {
    random: StdRng,
    /// The columns that they have added, by table.
    columns: Vec<Vec<Column>>,
    made: u32,
    side_tables: Vec<String>,
}

struct Column {
    name: String,
    integer: bool,
}

impl Owners {
    pub fn new(seed: u64) -> Owners {
        let columns = KEYED.iter().map(|_| Vec::new()).collect();
        Owners { random: StdRng::seed_from_u64(seed), columns, made: 0, side_tables: Vec::new() }
    }

    /// Tables that they have made and kept.
    pub fn side_tables(&self) -> &[String] {
        &self.side_tables
    }

    /// Makes one change. Lost lock races are tried again; a lost server is for the next change.
    pub async fn change(&mut self, client: &Client) {
        let sql = self.next();
        let sql = format!("SET lock_timeout = '2s'; BEGIN; {sql} COMMIT");
        loop {
            match client.batch_execute(&sql).await {
                Ok(()) => return,
                Err(error) if is_to_be_tried_again(&error) => {
                    client.batch_execute("ROLLBACK").await.unwrap();
                }
                Err(error) => panic!("a change of the schema failed: {error:?}\n{sql}"),
            }
        }
    }

    fn next(&mut self) -> String {
        self.made += 1;
        let at = self.random.random_range(0..KEYED.len());
        let (table, name) = (KEYED[at], format!("extra_{}", self.made));
        let mut sql = String::new();
        let known = self.columns[at].len();
        match self.random.random_range(0..10) {
            0..=3 => {
                let forms = ["int", "int DEFAULT 7", "timestamptz DEFAULT now()", "float8 DEFAULT random()"];
                let form = forms[self.random.random_range(0..forms.len())];
                writeln!(sql, "ALTER TABLE {table} ADD COLUMN {name} {form};").unwrap();
                if form.starts_with("int") {
                    writeln!(
                        sql,
                        "UPDATE {table} SET {name} = {} WHERE ctid IN (SELECT ctid FROM {table} LIMIT 20);",
                        self.made
                    )
                    .unwrap();
                }
                self.columns[at].push(Column { name, integer: form.starts_with("int") });
            }
            4 if known > 0 => {
                let dropped = self.columns[at].swap_remove(0);
                writeln!(sql, "ALTER TABLE {table} DROP COLUMN {};", dropped.name).unwrap();
            }
            5 | 6 if known > 0 => {
                let renamed = &mut self.columns[at][known - 1];
                writeln!(sql, "ALTER TABLE {table} RENAME COLUMN {} TO {name};", renamed.name).unwrap();
                renamed.name = name;
            }
            7 if known > 0 && self.columns[at][0].integer => {
                let widened = &mut self.columns[at][0];
                widened.integer = false;
                writeln!(sql, "ALTER TABLE {table} ALTER {} TYPE bigint;", widened.name).unwrap();
            }
            8 if !self.side_tables.is_empty() => {
                let last = self.side_tables.len() - 1;
                let side = &self.side_tables[last];
                writeln!(
                    sql,
                    "TRUNCATE {side}; INSERT INTO {side} SELECT n, 'again' FROM generate_series(1, 30) n;"
                )
                .unwrap();
            }
            _ => {
                let side = format!("side_{}", self.made);
                writeln!(
                    sql,
                    "CREATE TABLE {side} (id int PRIMARY KEY, v text);
                     INSERT INTO {side} SELECT n, 'v' || n FROM generate_series(1, 50) n;"
                )
                .unwrap();
                if let Some(gone) = self.side_tables.pop_if(|_| self.made.is_multiple_of(3)) {
                    writeln!(sql, "DROP TABLE {gone};").unwrap();
                }
                self.side_tables.push(side);
            }
        }
        sql
    }
}
