package contract_test

import (
	"flag"
	"os"
	"path/filepath"
	"testing"

	"attentive.internal/pkg/contract"
	attentivev1 "attentive.internal/proto/attentive/v1"
	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
)

var update = flag.Bool("update", false, "write the golden files of this package anew")

var golden = []struct {
	name  string
	empty proto.Message
}{
	{"segment_job", &attentivev1.SegmentJob{}},
	{"attributes_job", &attentivev1.AttributesJob{}},
	{"profile_attributes", &attentivev1.Profile{}},
	{"profile_subscribe", &attentivev1.Profile{}},
	{"profile_unsubscribe", &attentivev1.Profile{}},
}

func jsonHeader() nats.Header {
	return nats.Header{contract.HeaderContentType: {contract.ContentTypeJSON}}
}

// TestGolden keeps the wire: what upstream teams wrote as JSON yesterday, and
// the bytes that lie in queues, mean the same tomorrow.
func TestGolden(t *testing.T) {
	t.Parallel()
	for _, tt := range golden {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			fromJSON := proto.Clone(tt.empty)
			if err := contract.Decode(jsonHeader(), readFile(t, tt.name+".json"), fromJSON); err != nil {
				t.Fatalf("decode JSON: %v", err)
			}
			encoded, err := contract.Encode(fromJSON)
			if err != nil {
				t.Fatalf("encode: %v", err)
			}
			if *update {
				if err := os.WriteFile(filepath.Join("testdata", tt.name+".binpb"), encoded, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(readFile(t, tt.name+".binpb"), encoded); diff != "" {
				t.Errorf("binary differs from the golden file (-want +got):\n%s", diff)
			}
			fromBinary := proto.Clone(tt.empty)
			if err := contract.Decode(nil, readFile(t, tt.name+".binpb"), fromBinary); err != nil {
				t.Fatalf("decode binary: %v", err)
			}
			if diff := cmp.Diff(fromJSON, fromBinary, protocmp.Transform()); diff != "" {
				t.Errorf("binary and JSON differ (-json +binary):\n%s", diff)
			}
			text, err := protojson.Marshal(fromBinary)
			if err != nil {
				t.Fatal(err)
			}
			again := proto.Clone(tt.empty)
			if err := contract.Decode(jsonHeader(), text, again); err != nil {
				t.Fatalf("decode JSON again: %v", err)
			}
			if diff := cmp.Diff(fromBinary, again, protocmp.Transform()); diff != "" {
				t.Errorf("round trip through JSON (-want +got):\n%s", diff)
			}
		})
	}
}

func readFile(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// load returns the golden message of the name.
func load[M proto.Message](t testing.TB, name string, m M) M {
	t.Helper()
	if err := contract.Decode(jsonHeader(), readFile(t, name+".json"), m); err != nil {
		t.Fatal(err)
	}
	return m
}
