package cli

import (
	"encoding/json"
	"fmt"
	"io"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// writeJSON writes v as one line. Every v of this package can be encoded.
func writeJSON(w io.Writer, v any) {
	data, err := json.Marshal(v)
	if err != nil {
		data = fmt.Appendf(nil, `{"error":%q}`, err)
	}
	fmt.Fprintf(w, "%s\n", data)
}

// protoJSON is a message as part of a JSON object, with the field names of the
// contract.
func protoJSON(m proto.Message) json.RawMessage {
	data, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return nil // not UTF-8: no worker made it
	}
	return data
}
