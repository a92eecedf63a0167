package contract_test

import (
	"math"
	"testing"

	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
	attentivev1 "attentive.internal/proto/attentive/v1"
	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
)

const envelopeJob = "0b7c1d7e-4a53-4c6e-9d0f-6f1f0d6f3a10"

func envelope(t testing.TB, k contract.Kind, extra nats.Header) *contract.Envelope {
	t.Helper()
	e, err := contract.NewEnvelope("acme", k, envelopeJob, extra)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestEnvelope(t *testing.T) {
	t.Parallel()
	extra := nats.Header{"Traceparent": {"trace"}}
	e := envelope(t, contract.Attributes, extra)
	p := load(t, "profile_attributes", &attentivev1.Profile{})
	for range 2 {
		msg, err := e.Message(p)
		if err != nil {
			t.Fatal(err)
		}
		want := nats.Header{"Content-Type": {"application/protobuf"}, "Attentive-Contract": {"1"}, "Traceparent": {"trace"}}
		if diff := cmp.Diff(want, msg.Header); diff != "" {
			t.Errorf("headers (-want +got):\n%s", diff)
		}
		got := &attentivev1.Profile{}
		if err := contract.Decode(msg.Header, msg.Data, got); err != nil || !proto.Equal(got, p) {
			t.Errorf("decoded: %v, %v", got, err)
		}
		if err := contract.CheckSubject(msg.Subject, got); err != nil {
			t.Error(err)
		}
		msg.Header.Set("Nats-Batch-Id", "1") // of this message alone
	}
}

func TestEnvelopeRefuses(t *testing.T) {
	t.Parallel()
	_, err := contract.NewEnvelope("ACME", contract.Attributes, envelopeJob, nil)
	wantFault(t, err, fault.InvalidMessage, "destination")
	_, err = contract.NewEnvelope("acme", contract.Attributes, "7", nil)
	wantFault(t, err, fault.InvalidMessage, "job")
	p := load(t, "profile_attributes", &attentivev1.Profile{})
	_, err = envelope(t, contract.Subscribe, nil).Message(p)
	wantFault(t, err, fault.InvalidMessage, "kind")
	p.GetAttributes().GetValues().Fields["long"] = structpb.NewStringValue(string(make([]byte, contract.MaxMessageBytes)))
	_, err = envelope(t, contract.Attributes, nil).Message(p)
	wantFault(t, err, fault.TooLarge)
}

// What an envelope writes is what the library reads, and what it cannot write the
// library cannot either.
func FuzzEnvelope(f *testing.F) {
	f.Add("+12125550123", "tier", "gold", uint64(7), uint8(0))
	f.Add("", "", "", uint64(0), uint8(1))
	f.Add("\xff", "name", "\xfe", uint64(math.MaxUint64), uint8(2))
	f.Add("a@example.com", "points", "1", uint64(300), uint8(31))
	f.Fuzz(func(t *testing.T, id, name, text string, row uint64, shape uint8) {
		fields := map[string]*structpb.Value{name: structpb.NewStringValue(text), "points": structpb.NewNumberValue(float64(row))}
		if shape&1 != 0 {
			fields[name+text] = structpb.NewBoolValue(shape&2 != 0)
		}
		if shape&4 != 0 {
			fields["list"] = structpb.NewListValue(&structpb.ListValue{})
		}
		if shape&8 != 0 {
			fields["nil"] = nil
		}
		p := &attentivev1.Profile{
			Id: id, Row: row,
			Identifiers: &attentivev1.Identifiers{Phone: id, Email: text, ClientUserId: name, ShopifyId: id, KlaviyoId: text},
			Operation:   &attentivev1.Profile_Attributes{Attributes: &attentivev1.SetAttributes{Values: &structpb.Struct{Fields: fields}}},
		}
		if shape&16 != 0 {
			p.Identifiers.Custom = map[string]string{name: text}
		}
		want, wantErr := contract.Encode(p)
		msg, err := envelope(t, contract.Attributes, nil).Message(p)
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("error %v, want %v", err, wantErr)
		}
		if err == nil && string(msg.Data) != string(want) {
			t.Errorf("%x, want %x", msg.Data, want)
		}
	})
}
