import java.io.StringReader;
import java.io.StringWriter;
import java.math.BigDecimal;
import java.nio.charset.StandardCharsets;
import java.sql.Array;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.SQLWarning;
import java.sql.Savepoint;
import java.sql.Statement;
import java.sql.Types;
import java.util.Properties;
import java.util.UUID;
import javax.sql.XAConnection;
import javax.transaction.xa.XAResource;
import javax.transaction.xa.Xid;
import org.postgresql.PGConnection;
import org.postgresql.PGNotification;
import org.postgresql.copy.CopyManager;
import org.postgresql.largeobject.LargeObject;
import org.postgresql.largeobject.LargeObjectManager;
import org.postgresql.xa.PGXADataSource;

/** What applications in Java do, printed. The server comes from libpq's environment variables. */
public class JdbcSession {
    record Id(int getFormatId, byte[] getGlobalTransactionId, byte[] getBranchQualifier) implements Xid {
        static Id of(String name) {
            byte[] bytes = name.getBytes(StandardCharsets.UTF_8);
            return new Id(1, bytes, bytes);
        }
    }

    static String variable(String name) {
        String value = System.getenv(name);
        return value == null ? "" : value;
    }

    static Connection connect(String... settings) throws SQLException {
        Properties properties = new Properties();
        properties.setProperty("user", variable("PGUSER"));
        properties.setProperty("password", variable("PGPASSWORD"));
        for (int i = 0; i < settings.length; i += 2) properties.setProperty(settings[i], settings[i + 1]);
        String url = "jdbc:postgresql://" + variable("PGHOST") + ":" + variable("PGPORT") + "/" + variable("PGDATABASE");
        return DriverManager.getConnection(url, properties);
    }

    static void show(String what, Object... values) {
        StringBuilder line = new StringBuilder(what + ":");
        for (Object value : values) line.append(' ').append(value);
        System.out.println(line);
    }

    static void run(Connection connection, String sql) throws SQLException {
        try (Statement statement = connection.createStatement()) {
            statement.execute(sql);
        }
    }

    static String one(Connection connection, String sql) throws SQLException {
        try (Statement statement = connection.createStatement(); ResultSet rows = statement.executeQuery(sql)) {
            rows.next();
            return rows.getString(1);
        }
    }

    static void statements(Connection connection) throws SQLException {
        run(connection, "CREATE TABLE j (id int PRIMARY KEY, v text, n numeric, u uuid, a int[], b bytea, at timestamptz)");
        connection.setAutoCommit(false);
        try (PreparedStatement insert = connection.prepareStatement("INSERT INTO j VALUES (?, ?, ?, ?, ?, ?, ?::timestamptz)")) {
            for (int i = 0; i < 1000; i++) {
                insert.setInt(1, i);
                insert.setString(2, i % 9 == 0 ? null : "row " + i);
                insert.setBigDecimal(3, new BigDecimal(i).movePointLeft(2));
                insert.setObject(4, new UUID(0, i));
                Array array = connection.createArrayOf("int4", new Object[] {i, null, -i});
                insert.setArray(5, array);
                insert.setBytes(6, new byte[] {(byte) i, 0});
                insert.setString(7, "2026-01-02 03:04:05Z");
                insert.addBatch();
            }
            show("batch", insert.executeBatch().length);
        }
        connection.commit();
        try (PreparedStatement select = connection.prepareStatement("SELECT *, pg_typeof(u) FROM j WHERE id = ?")) {
            for (int i = 0; i < 12; i++) {
                select.setInt(1, i * 9);
                try (ResultSet row = select.executeQuery()) {
                    row.next();
                    if (i > 9) show("row", row.getInt(1), row.getString(2), row.getBigDecimal(3), row.getObject(4), row.getArray(5), row.getBytes(6).length, row.getTimestamp(7).getTime(), row.getString(8));
                }
            }
        }
        try (PreparedStatement walk = connection.prepareStatement("SELECT id FROM j ORDER BY id")) {
            walk.setFetchSize(100);
            long sum = 0;
            try (ResultSet rows = walk.executeQuery()) {
                while (rows.next()) sum += rows.getInt(1);
            }
            show("in portions", sum);
        }
        try (PreparedStatement keys = connection.prepareStatement("INSERT INTO j (id) SELECT max(id) + 1 FROM j", Statement.RETURN_GENERATED_KEYS)) {
            keys.executeUpdate();
            ResultSet generated = keys.getGeneratedKeys();
            generated.next();
            show("key", generated.getInt("id"));
        }
        Savepoint savepoint = connection.setSavepoint("here");
        try {
            run(connection, "INSERT INTO j (id) VALUES (1)");
        } catch (SQLException error) {
            show("refused", error.getSQLState(), error.getMessage().lines().findFirst().orElse(""));
        }
        connection.rollback(savepoint);
        connection.commit();
        show("rows", one(connection, "SELECT count(*) || md5(string_agg(j::text, '' ORDER BY id)) FROM j"));
        connection.commit();
        connection.setAutoCommit(true);
    }

    static void callable(Connection connection) throws SQLException {
        run(connection, "CREATE PROCEDURE twice(INOUT x int) LANGUAGE plpgsql AS $$ BEGIN RAISE WARNING 'doubling %', x; COMMIT; x := x * 2; END $$");
        try (var call = connection.prepareCall("CALL twice(?)")) {
            call.setInt(1, 21);
            call.registerOutParameter(1, Types.INTEGER);
            call.execute();
            show("called", call.getInt(1));
            for (SQLWarning warning = call.getWarnings(); warning != null; warning = warning.getNextWarning()) show("warning", warning.getSQLState(), warning.getMessage());
        }
    }

    static void copying(Connection connection) throws Exception {
        run(connection, "CREATE TABLE jc (id int, v text)");
        CopyManager copy = connection.unwrap(PGConnection.class).getCopyAPI();
        show("copied in", copy.copyIn("COPY jc FROM STDIN (FORMAT csv)", new StringReader("1,a\n2,\"b,c\"\n3,\n")));
        StringWriter out = new StringWriter();
        show("copied out", copy.copyOut("COPY (SELECT * FROM jc ORDER BY id) TO STDOUT", out), out.toString().replace("\n", "|"));
    }

    static void largeObjects(Connection connection) throws Exception {
        connection.setAutoCommit(false);
        LargeObjectManager manager = connection.unwrap(PGConnection.class).getLargeObjectAPI();
        long id = manager.createLO();
        try (LargeObject object = manager.open(id, LargeObjectManager.READWRITE)) {
            object.write(new byte[100_000]);
            object.seek(99_999);
            object.write("end".getBytes(StandardCharsets.UTF_8));
            object.seek(0);
            show("large object", object.size(), object.read(200_000).length);
        }
        manager.unlink(id);
        connection.commit();
        connection.setAutoCommit(true);
    }

    static void notifications(Connection connection) throws Exception {
        run(connection, "LISTEN java");
        run(connection, "NOTIFY java, 'hello'");
        PGNotification[] heard = connection.unwrap(PGConnection.class).getNotifications(60_000);
        show("notified", heard.length, heard[0].getName(), heard[0].getParameter());
    }

    static void cancelling(Connection connection) throws Exception {
        try (Statement statement = connection.createStatement()) {
            Thread canceller = new Thread(() -> {
                try (Connection another = connect()) {
                    while (one(another, "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = 'SELECT pg_sleep(60)'").equals("0")) Thread.sleep(20);
                    statement.cancel();
                } catch (InterruptedException | SQLException error) {
                    show("not cancelled", error);
                }
            });
            canceller.start();
            statement.execute("SELECT pg_sleep(60)");
        } catch (SQLException error) {
            show("cancelled", error.getSQLState());
        }
        show("goes on", one(connection, "SELECT 'yes'"));
    }

    static void twoPhases() throws Exception {
        PGXADataSource source = new PGXADataSource();
        source.setServerNames(new String[] {variable("PGHOST")});
        source.setPortNumbers(new int[] {Integer.parseInt(variable("PGPORT"))});
        source.setDatabaseName(variable("PGDATABASE"));
        source.setUser(variable("PGUSER"));
        source.setPassword(variable("PGPASSWORD"));
        XAConnection connection = source.getXAConnection();
        XAResource resource = connection.getXAResource();
        Id id = Id.of("java");
        resource.start(id, XAResource.TMNOFLAGS);
        run(connection.getConnection(), "INSERT INTO jc VALUES (100, 'xa')");
        resource.end(id, XAResource.TMSUCCESS);
        show("prepared", resource.prepare(id));
        show("recovered", resource.recover(XAResource.TMSTARTRSCAN | XAResource.TMENDRSCAN).length);
        resource.commit(id, false);
        show("committed", one(connection.getConnection(), "SELECT v FROM jc WHERE id = 100"));
        connection.close();
    }

    static void metadata(Connection connection) throws SQLException {
        var metadata = connection.getMetaData();
        show("server", metadata.getDatabaseProductName(), metadata.getDatabaseProductVersion(), metadata.getMaxConnections());
        try (ResultSet columns = metadata.getColumns(null, "public", "j%", null)) {
            while (columns.next()) show("column", columns.getString("TABLE_NAME"), columns.getString("COLUMN_NAME"), columns.getString("TYPE_NAME"));
        }
        try (ResultSet keys = metadata.getPrimaryKeys(null, "public", "j")) {
            while (keys.next()) show("key", keys.getString("COLUMN_NAME"), keys.getString("PK_NAME"));
        }
    }

    public static void main(String[] arguments) throws Exception {
        for (String mode : new String[] {"extended", "simple"}) {
            try (Connection connection = connect("preferQueryMode", mode, "prepareThreshold", "2", "binaryTransfer", "true")) {
                show("mode", mode, one(connection, "SELECT current_user"));
                run(connection, "DROP TABLE IF EXISTS j, jc; DROP PROCEDURE IF EXISTS twice");
                statements(connection);
                if (!mode.equals("simple")) callable(connection);
            }
        }
        try (Connection connection = connect()) {
            copying(connection);
            largeObjects(connection);
            notifications(connection);
            cancelling(connection);
            metadata(connection);
        }
        twoPhases();
        try (Connection connection = connect("readOnly", "true", "readOnlyMode", "always", "ApplicationName", "java", "currentSchema", "pg_catalog")) {
            show("settings", one(connection, "SHOW application_name"), one(connection, "SHOW search_path"));
            run(connection, "CREATE TABLE refused (id int)");
        } catch (SQLException error) {
            show("read only", error.getSQLState());
        }
    }
}
