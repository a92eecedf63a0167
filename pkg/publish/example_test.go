package publish_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/google/uuid"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/event"
	"attentive.internal/pkg/publish"
	attentivev1 "attentive.internal/proto/attentive/v1"
)

// A service that stores an audience, publishes a job, and follows it to its end.
func Example() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	if err := send(ctx, "nats://127.0.0.1:4222", "winback.csv"); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

func send(ctx context.Context, url, path string) error {
	conn, err := broker.Connect(ctx, broker.Options{URL: url, Name: "winback service"}, slog.Default())
	if err != nil {
		return err
	}
	defer conn.NC.Close()
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	client := publish.New(conn)
	id := uuid.NewString() // keep it: whoever tries again uses it again
	rows, err := client.Audience(ctx, id+"/winback.csv", file)
	if err != nil {
		return err
	}
	rows.Format = attentivev1.Format_FORMAT_CSV
	_, err = client.SegmentJob(ctx, &attentivev1.SegmentJob{
		Id: id, Destination: "acme-segments", Template: "default",
		Origin: &attentivev1.SegmentJob_Campaign{Campaign: &attentivev1.Campaign{Name: "Winback"}},
		Groups: []*attentivev1.Group{{Name: "Jeans", Source: rows}},
	})
	if err != nil {
		return err
	}
	for e, err := range event.Follow(ctx, conn, contract.Segment, "acme-segments", id) {
		if err != nil {
			return err
		}
		fmt.Println(e.GetState(), e.GetText())
	}
	return nil
}
