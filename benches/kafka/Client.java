import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Future;
import java.util.concurrent.atomic.AtomicLong;
import java.util.function.Consumer;
import java.util.stream.Collectors;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.AlterConfigOp;
import org.apache.kafka.clients.admin.ConfigEntry;
import org.apache.kafka.clients.admin.NewPartitions;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.admin.OffsetSpec;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.errors.UnknownTopicOrPartitionException;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.apache.kafka.common.serialization.StringSerializer;
import org.apache.kafka.tools.consumer.group.ConsumerGroupCommand;

/**
 * Kafka's own clients for {@code crash}, in one process because each start of Java takes seconds.
 *
 * <p>{@code java -cp 'libs/*' Client.java BROKERS} reads a command per line, with its words separated by tabs, and
 * answers with any number of lines and then {@code ok}, or {@code error} and a reason:
 *
 * <pre>
 * create TOPIC PARTITIONS …   creates topics
 * set TOPIC NAME VALUE        changes a setting of a topic
 * grow TOPIC PARTITIONS       adds partitions up to that number
 * delete TOPIC                deletes a topic; answers once it is gone
 * send TOPIC FILE             executes the file's lines, with tabs between their words, in their order:
 *                               send PRODUCER KEY VALUE; PRODUCER is - for one without transactions
 *                               commit PRODUCER, abort PRODUCER: ends its transaction
 * read TOPIC                  the messages that a reader of committed ones gets: PARTITION, OFFSET, KEY, VALUE
 * count TOPIC                 how many these are
 * group NAME                  what kafka-consumer-groups --describe prints
 * </pre>
 */
public class Client {
    private static final Duration TIMEOUT = Duration.ofSeconds(30);

    private final String brokers;
    private final PrintStream out;

    private Client(String brokers, PrintStream out) {
        this.brokers = brokers;
        this.out = out;
    }

    public static void main(String[] arguments) throws Exception {
        Client client = new Client(arguments[0], new PrintStream(System.out, false, StandardCharsets.UTF_8));
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line; (line = in.readLine()) != null; ) {
            try {
                client.execute(line.split("\t"));
                client.out.println("ok");
            } catch (Exception e) {
                client.out.println("error\t" + e.toString().replace('\n', ' '));
            }
            client.out.flush();
        }
    }

    private void execute(String[] words) throws Exception {
        switch (words[0]) {
            case "create" -> create(words);
            case "set" -> set(words[1], new ConfigEntry(words[2], words[3]));
            case "grow" -> grow(words[1], Integer.parseInt(words[2]));
            case "delete" -> delete(words[1]);
            case "send" -> send(words[1], Path.of(words[2]));
            case "read" -> read(words[1], record -> out.println(record.partition() + "\t" + record.offset() + "\t"
                    + record.key() + "\t" + record.value()));
            case "count" -> {
                AtomicLong count = new AtomicLong();
                read(words[1], record -> count.incrementAndGet());
                out.println(count);
            }
            case "group" -> ConsumerGroupCommand.main(
                    new String[] {"--bootstrap-server", brokers, "--describe", "--group", words[1]});
            default -> throw new IllegalArgumentException(words[0]);
        }
    }

    private Map<String, Object> settings() {
        Map<String, Object> settings = new HashMap<>();
        settings.put("bootstrap.servers", brokers);
        settings.put("default.api.timeout.ms", (int) TIMEOUT.toMillis());
        return settings;
    }

    private void create(String[] words) throws Exception {
        List<NewTopic> topics = new ArrayList<>();
        for (int at = 1; at < words.length; at += 2) {
            topics.add(new NewTopic(words[at], Integer.parseInt(words[at + 1]), (short) 1));
        }
        try (Admin admin = Admin.create(settings())) {
            admin.createTopics(topics).all().get();
            for (NewTopic topic : topics) {
                awaitLeaders(admin, topic.name(), topic.numPartitions());
            }
        }
    }

    /** A producer that meets partitions before their leader is ready may repeat batches out of order for minutes. */
    private void awaitLeaders(Admin admin, String topic, int partitions) throws Exception {
        Map<TopicPartition, OffsetSpec> ends = new HashMap<>();
        for (int partition = 0; partition < partitions; partition++) {
            ends.put(new TopicPartition(topic, partition), OffsetSpec.latest());
        }
        for (long deadline = System.nanoTime() + TIMEOUT.toNanos(); ; Thread.sleep(20)) {
            try {
                admin.listOffsets(ends).all().get();
                return;
            } catch (ExecutionException e) {
                if (!(e.getCause() instanceof UnknownTopicOrPartitionException) || System.nanoTime() > deadline) {
                    throw e;
                }
            }
        }
    }

    private void set(String topic, ConfigEntry setting) throws Exception {
        AlterConfigOp set = new AlterConfigOp(setting, AlterConfigOp.OpType.SET);
        try (Admin admin = Admin.create(settings())) {
            ConfigResource changed = new ConfigResource(ConfigResource.Type.TOPIC, topic);
            admin.incrementalAlterConfigs(Map.of(changed, List.of(set))).all().get();
        }
    }

    private void grow(String topic, int partitions) throws Exception {
        try (Admin admin = Admin.create(settings())) {
            admin.createPartitions(Map.of(topic, NewPartitions.increaseTo(partitions))).all().get();
            awaitLeaders(admin, topic, partitions);
        }
    }

    private void delete(String topic) throws Exception {
        try (Admin admin = Admin.create(settings())) {
            admin.deleteTopics(Set.of(topic)).all().get();
            while (admin.listTopics().names().get().contains(topic)) {
                Thread.sleep(20);
            }
        }
    }

    /** Several producers may have a transaction open at once, on the same partitions. */
    private void send(String topic, Path file) throws Exception {
        Map<String, KafkaProducer<String, String>> producers = new HashMap<>();
        Set<String> open = new HashSet<>();
        List<Future<?>> unanswered = new ArrayList<>();
        try {
            for (String line : Files.readAllLines(file)) {
                String[] words = line.split("\t", 4);
                String name = words[1];
                KafkaProducer<String, String> producer = producers.get(name);
                if (producer == null) {
                    producer = producer(topic, name);
                    producers.put(name, producer);
                }
                switch (words[0]) {
                    case "send" -> {
                        if (!name.equals("-") && open.add(name)) {
                            producer.beginTransaction();
                        }
                        unanswered.add(producer.send(new ProducerRecord<>(topic, words[2], words[3])));
                    }
                    case "commit" -> {
                        producer.commitTransaction();
                        open.remove(name);
                    }
                    case "abort" -> {
                        // Without this, records that were not sent yet would never be in the log.
                        producer.flush();
                        producer.abortTransaction();
                        open.remove(name);
                    }
                    default -> throw new IllegalArgumentException(line);
                }
            }
            producers.values().forEach(KafkaProducer::flush);
            for (Future<?> answer : unanswered) {
                answer.get();
            }
        } finally {
            producers.values().forEach(producer -> producer.close(TIMEOUT));
        }
    }

    private KafkaProducer<String, String> producer(String topic, String name) {
        Map<String, Object> settings = settings();
        settings.put("acks", "all");
        settings.put("max.in.flight.requests.per.connection", 1);
        if (!name.equals("-")) {
            settings.put("transactional.id", topic + "-" + name);
        }
        var producer = new KafkaProducer<>(settings, new StringSerializer(), new StringSerializer());
        if (!name.equals("-")) {
            producer.initTransactions();
        }
        return producer;
    }

    private void read(String topic, Consumer<ConsumerRecord<String, String>> action) {
        Map<String, Object> settings = settings();
        settings.put("isolation.level", "read_committed");
        settings.put("enable.auto.commit", false);
        try (var consumer = new KafkaConsumer<>(settings, new StringDeserializer(), new StringDeserializer())) {
            List<TopicPartition> partitions = consumer.partitionsFor(topic).stream()
                    .map(p -> new TopicPartition(topic, p.partition()))
                    .collect(Collectors.toList());
            consumer.assign(partitions);
            consumer.seekToBeginning(partitions);
            Map<TopicPartition, Long> ends = consumer.endOffsets(partitions);
            long deadline = System.nanoTime() + TIMEOUT.toNanos();
            while (partitions.stream().anyMatch(p -> consumer.position(p) < ends.get(p))) {
                if (System.nanoTime() > deadline) {
                    throw new IllegalStateException("the end of " + topic + " was not reached");
                }
                for (ConsumerRecord<String, String> record : consumer.poll(Duration.ofMillis(200))) {
                    action.accept(record);
                    deadline = System.nanoTime() + TIMEOUT.toNanos();
                }
            }
        }
    }
}
